"""What every positional embedding is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._deprecation import warn_deprecated
from xformers.utils import options_of


@dataclass
class PositionEmbeddingConfig:
    """Options that every positional embedding has; a class's own config derives from this one."""

    name: str  # of the registry
    dim_model: int
    seq_len: int


class PositionEmbedding(nn.Module, metaclass=ABCMeta):
    """Base of positional embeddings: `forward(x)`, tokens in, embeddings `[batch, seqlen, dim_model]` out."""

    def __init__(self, *_: object, **__: object):
        super().__init__()
        warn_deprecated(type(self).__name__, stacklevel=4)

    @classmethod
    def from_config(cls, config: PositionEmbeddingConfig) -> PositionEmbedding:
        """With the config's fields; those that are None take the constructor's default."""
        return cls(**options_of(config))

    @abstractmethod
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor: ...


__all__ = ["PositionEmbedding", "PositionEmbeddingConfig"]
