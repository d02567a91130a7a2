"""Positions as sines and cosines."""

from typing import Any

import torch

from ._registry import register_positional_embedding
from .base import PositionEmbedding, PositionEmbeddingConfig


@register_positional_embedding("sine", PositionEmbeddingConfig)
class SinePositionalEmbedding(PositionEmbedding):
    """`x [batch, seqlen, dim_model]` plus sin (even) or cos (odd d) of `s * 10000 ** (-2 * (d // 2) / dim_model)`.

    `[batch, seqlen]`, integers too, gets a last dimension and broadcasts. Any length. From "Attention Is All You Need"
    (Vaswani et al., arXiv:1706.03762, section 3.5)."""

    def __init__(self, dim_model: int, *_: object, **__: object):
        super().__init__()
        self.dim_model = dim_model

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.ops.xformers.sine_embedding(x, self.dim_model)


__all__ = ["SinePositionalEmbedding"]
