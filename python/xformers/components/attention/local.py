"""Attention to the tokens nearby."""

from dataclasses import dataclass

import torch
from torch import nn

from ._masks import Mask, unwrapped
from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class LocalAttentionConfig(AttentionConfig):
    """Options of `LocalAttention`, by name; what they mean is said there. None: its default."""

    causal: bool | None
    window_size: int | None
    force_sparsity: bool | None


@register_attention("local", LocalAttentionConfig)
class LocalAttention(Attention):
    """softmax attention within |i - j| <= window_size // 2, for an odd window_size (AssertionError); causal: within
    0 <= i - j <= window_size. A band of the score matrix: no mask is made, and the cost grows with the window.

    Masks as `ScaledDotProduct` takes them, beside the window. Queries and keys are those of the same tokens.
    `force_sparsity` has no effect, since nothing but the band is ever computed.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        window_size: int = 5,
        force_sparsity: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        assert window_size >= 1 and (causal or window_size % 2 == 1), (
            f"local: window_size is {window_size}, expected {'at least 1' if causal else 'an odd number'}.  Fix: it "
            "counts the token itself and as many before as after it."
        )
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.causal = causal
        self.window_size = window_size
        self.force_sparsity = force_sparsity
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
        mask, causal = unwrapped(att_mask, q.shape[1], k.shape[1])
        p = self.attn_drop.p if self.training else 0.0
        return torch.ops.xformers.local_attention(
            q, k, v, mask, key_padding_mask, self.window_size, self.causal, causal, p
        )


__all__ = ["LocalAttention", "LocalAttentionConfig"]
