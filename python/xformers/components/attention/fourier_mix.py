"""Tokens mixed by the Fourier transform."""

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


@register_attention("fourier_mix", AttentionConfig)
class FourierMix(Attention):
    """The real part of the Fourier transform of q over tokens and features; k and v are not read: FNet, Lee-Thorp et
    al., arXiv:2105.03824. Half precision is transformed in fp32, also under autocast. Dropout acts on the result."""

    def __init__(self, dropout: float = 0.0, *_: object, **__: object):
        super().__init__()
        self.attn_drop = nn.Dropout(dropout)
        self.supports_attention_mask = False
        self.requires_input_projection = False

    def forward(self, q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return self.attn_drop(torch.ops.xformers.fourier_mix(q))


__all__ = ["FourierMix"]
