"""Attention over keys and values that are projected along the sequence."""

from dataclasses import dataclass

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class LinformerSelfAttentionConfig(AttentionConfig):
    """Options of `LinformerAttention`, by name; what they mean is said there. None: its default."""

    seq_len: int
    k: int | None  # rows that keys and values are projected to: seq_len // 4


@register_attention("linformer", LinformerSelfAttentionConfig)
class LinformerAttention(Attention):
    """softmax(q (E k)^T / sqrt(head_dim)) (F v) with E and F `[k, seq_len]`: Wang et al., arXiv:2006.04768.

    For sequences of at most seq_len tokens (AssertionError); shorter ones take the first columns. Dropout acts on the
    weights and on the output. No masks.
    """

    _takes_heads = True

    def __init__(self, dropout: float = 0.0, seq_len: int = 0, k: int | None = None, *_: object, **__: object):
        super().__init__()
        assert seq_len > 0, f"linformer: seq_len is {seq_len}, expected at least 1.  Fix: name the longest sequence."
        k = max(seq_len // 4, 1) if k is None else k
        self.k = k
        self.E = nn.Linear(seq_len, k, bias=False)
        self.F = nn.Linear(seq_len, k, bias=False)
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.seq_len = seq_len
        self.requires_same_k_q_dimensions = True
        self.supports_attention_mask = False

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        assert k.shape[1] <= self.seq_len, (
            f"linformer: the sequence has length {k.shape[1]}, expected at most seq_len = {self.seq_len}.  Fix: build "
            "it with a larger seq_len."
        )
        p = self.attn_drop.p if self.training else 0.0
        return torch.ops.xformers.linformer_attention(q, k, v, self.E.weight, self.F.weight, p)


__all__ = ["LinformerAttention", "LinformerSelfAttentionConfig"]
