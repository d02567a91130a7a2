"""Learnt positions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._registry import register_positional_embedding
from .base import PositionEmbedding, PositionEmbeddingConfig


@dataclass
class LearnablePositionalEmbeddingConfig(PositionEmbeddingConfig):
    """Options of LearnablePositionalEmbedding."""

    add_class_token: bool


@register_positional_embedding("learnable", LearnablePositionalEmbeddingConfig)
class LearnablePositionalEmbedding(PositionEmbedding):
    """`x [batch, up to seq_len, dim_model]` plus the first rows of a parameter, N(0, 0.02) at first.

    `add_class_token`: a learnt token, zeros at first, is put before x. `[batch, seqlen]` gets a last dimension.
    ValueError for longer sequences."""

    def __init__(self, seq_len: int, dim_model: int, add_class_token: bool = False, *_: object, **__: object):
        super().__init__()
        self.pos_emb = nn.Parameter(torch.randn(1, seq_len + int(add_class_token), dim_model) * 0.02)
        self.class_token: nn.Parameter | None
        if add_class_token:
            self.class_token = nn.Parameter(torch.zeros(dim_model))
        else:
            self.register_parameter("class_token", None)

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.ops.xformers.learnable_embedding(x, self.pos_emb, self.class_token)


__all__ = ["LearnablePositionalEmbedding", "LearnablePositionalEmbeddingConfig"]
