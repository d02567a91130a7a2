"""Attention to random tokens."""

from dataclasses import dataclass

import torch
from torch import nn

from ._masks import Mask, unwrapped
from ._registry import register_attention
from .attention_patterns import random_pattern
from .base import Attention, AttentionConfig


@dataclass
class RandomAttentionConfig(AttentionConfig):
    """Options of `RandomAttention`, by name; what they mean is said there. None: its default."""

    r: float | None  # the share of keys that a query sees
    constant_masking: bool | None
    force_sparsity: bool | None
    causal: bool | None


@register_attention("random", RandomAttentionConfig)
class RandomAttention(Attention):
    """Each query sees a share r of the keys, drawn at random, the same for all heads and batch elements: BigBird's
    third part, Zaheer et al., arXiv:2007.14062. r = 1 is full attention; 0 < r <= 1 (AssertionError).

    The pattern is drawn at the first call, in which torch's default generator of the CPU draws, and held for all later
    ones; with constant_masking=False it is drawn in each. A shorter input is followed by tokens of zeros up to the
    pattern's length, which count as keys, and cut again; a longer one draws a new pattern. Masks as `ScaledDotProduct`
    takes them, beside the pattern. `force_sparsity` has no effect.
    """

    _takes_heads = True
    rand_attention_mask: torch.Tensor | None

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        r: float = 0.01,
        constant_masking: bool = True,
        force_sparsity: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        assert 0 < r <= 1, f"random: r is {r}, expected a number above 0, at most 1.  Fix: it is the share of keys."
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.causal = causal
        self.r = r
        self.constant_masking = constant_masking
        self.force_sparsity = force_sparsity
        self.register_buffer("rand_attention_mask", None, persistent=False)
        self.requires_same_k_q_dimensions = True

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
        seqlen, p = q.shape[1], self.attn_drop.p if self.training else 0.0
        mask, causal = unwrapped(att_mask, seqlen, k.shape[1])
        causal = causal or self.causal
        if self.r == 1:
            return torch.ops.xformers.scaled_dot_product(q, k, v, mask, key_padding_mask, causal, p)
        pattern = self.rand_attention_mask
        if pattern is None or not self.constant_masking or seqlen > len(pattern):
            pattern = random_pattern(seqlen, 1 - self.r, device=q.device)
            self.rand_attention_mask = pattern
        return torch.ops.xformers.pattern_attention(q, k, v, pattern, mask, key_padding_mask, causal, p)


__all__ = ["RandomAttention", "RandomAttentionConfig"]
