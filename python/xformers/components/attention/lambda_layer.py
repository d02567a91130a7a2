"""Attention replaced by linear functions of the queries."""

from dataclasses import dataclass

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class LambdaLayerConfig(AttentionConfig):
    """Options of `LambdaLayer`, by name; what they mean is said there. None: its default."""

    seq_len: int  # the longest
    dim_head: int
    paper_position: bool | None


@register_attention("lambda", LambdaLayerConfig)
class LambdaLayer(Attention):
    """q (softmax(k over features)^T v) and a position term: Bello, arXiv:2102.08602.

    The position term is (q_n . sum_i E[i, n]) v_n, or with `paper_position` the paper's, sum_m (q_n . E[n, m]) v_m,
    where E[i, j] = rel_pos_emb[j - i + seq_len - 1]. Sequences of at most seq_len tokens (AssertionError). Dropout acts
    on the result. No masks.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        seq_len: int = 0,
        dim_head: float = 0,
        paper_position: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        for name, size in (("seq_len", seq_len), ("dim_head", dim_head)):
            assert size > 0, f"lambda: {name} is {size}, expected at least 1.  Fix: give it a value."
        self.seq_len = seq_len
        self.paper_position = paper_position
        self.rel_pos_emb = nn.Parameter(torch.empty(2 * seq_len - 1, int(dim_head)))
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.requires_same_k_q_dimensions = True
        self.supports_attention_mask = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions from a normal distribution of width head_dim^-0.5."""
        nn.init.normal_(self.rel_pos_emb, std=self.rel_pos_emb.shape[1] ** -0.5)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        assert q.shape[1] <= self.seq_len, (
            f"lambda: the sequence has length {q.shape[1]}, expected at most seq_len = {self.seq_len}.  Fix: build it "
            "with a larger seq_len."
        )
        return self.attn_drop(torch.ops.xformers.lambda_layer(q, k, v, self.rel_pos_emb, self.paper_position))


__all__ = ["LambdaLayer", "LambdaLayerConfig"]
