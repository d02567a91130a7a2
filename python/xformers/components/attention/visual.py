"""Attention by large convolutions over the grid of tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class VisualAttentionConfig(AttentionConfig):
    """Options of `Visual`, by name; what they mean is said there. None: its default."""

    dim_model: int


class LKA(nn.Module):
    """u * conv1x1(depthwise 7x7, dilation 3 (depthwise 5x5 (u))), of images `[batch, dim, height, width]`."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, stride=1, padding=9, groups=dim, dilation=3)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


@register_attention("visual", VisualAttentionConfig)
class Visual(Attention):
    """x + conv1x1(LKA(gelu(conv1x1 x))) of a square grid of tokens `[batch, seqlen, dim_model]`, row by row: Visual
    Attention Network, Guo et al., arXiv:2202.09741. No other projections, no heads. ValueError where the tokens are no
    square."""

    def __init__(self, dim_model: int, dropout: float = 0.0, *_: object, **__: object):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim_model, dim_model, 1), nn.GELU(), LKA(dim_model), nn.Conv2d(dim_model, dim_model, 1)
        )
        self.attn_drop = nn.Dropout(dropout)
        self.requires_input_projection = False
        self.requires_skip_multi_head = True
        self.requires_squared_context = True
        self.supports_attention_mask = False

    def forward(self, q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        first, _gelu, lka, last = self.block
        layers: list[Any] = [first, lka.conv0, lka.conv_spatial, lka.conv1, last]
        weights = [t for layer in layers for t in (layer.weight, layer.bias)]
        return self.attn_drop(torch.ops.xformers.visual_attention(q, *weights))


__all__ = ["LKA", "Visual", "VisualAttentionConfig"]
