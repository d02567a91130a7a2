"""Tokens mixed by pooling over their grid."""

from dataclasses import dataclass

import torch

from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class PoolingAttentionConfig(AttentionConfig):
    """Options of `Pooling`, by name; what they mean is said there. None: its default."""

    pool_size: int | None
    stride: int | None
    padding: int | None


@register_attention("pooling", PoolingAttentionConfig)
class Pooling(Attention):
    """The mean of the tokens around each, minus the token, of a square grid `[batch, seqlen, dim]`, row by row:
    MetaFormer, Yu et al., arXiv:2111.11418. No projections, no heads; what lies outside of the grid does not count.
    Errors are ValueError: no square grid, a window that would leave another number of tokens."""

    def __init__(
        self,
        pool_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dropout: float = 0.0,
        *_: object,
        **__: object,
    ):
        super().__init__()
        self.pool_size = pool_size
        self.stride = stride
        self.padding = padding
        self.attn_drop = torch.nn.Dropout(dropout)
        self.requires_input_projection = False
        self.requires_skip_multi_head = True
        self.requires_squared_context = True
        self.supports_attention_mask = False

    def forward(self, q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        padding = -1 if self.padding is None else self.padding
        return self.attn_drop(torch.ops.xformers.pooling_attention(q, self.pool_size, self.stride, padding))


__all__ = ["Pooling", "PoolingAttentionConfig"]
