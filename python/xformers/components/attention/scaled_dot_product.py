"""Exact attention."""

from dataclasses import dataclass

import torch
from torch import nn

from ._masks import Mask, attend
from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class ScaledDotProductConfig(AttentionConfig):
    """Options of `ScaledDotProduct`, by name; what they mean is said there. None: its default."""

    causal: bool | None
    seq_len: int | None
    to_seq_len: int | None


@register_attention("scaled_dot_product", ScaledDotProductConfig)
class ScaledDotProduct(Attention):
    """softmax(q k^T / sqrt(head_dim) + masks) v, in memory that grows with the sequence: Vaswani et al.,
    arXiv:1706.03762.

    Masks are bool (True attends), additive, an AttentionMask or a SparseCS; `[seqlen_q, seqlen_k]` or with a first
    dimension of 1, batch or batch * heads. One for longer sequences is cut. Causal: query i sees the keys j <= i,
    beside the mask. ValueError for masks of another shape.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        seq_len: int | None = None,
        to_seq_len: int | None = None,
        *_: object,
        **__: object,
    ):
        super().__init__()
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.causal = causal
        self.seq_len = seq_len
        self.to_seq_len = to_seq_len if to_seq_len is not None else seq_len

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        att_mask: Mask | None = None,
        key_padding_mask: torch.Tensor | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        p = self.attn_drop.p if self.training else 0.0
        return attend(q, k, v, att_mask, key_padding_mask, self.causal, p)


__all__ = ["ScaledDotProduct", "ScaledDotProductConfig"]
