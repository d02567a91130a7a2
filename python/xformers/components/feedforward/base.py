"""What every feed-forward layer is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._activation import Activation
from xformers._deprecation import warn_deprecated
from xformers.utils import options_of


@dataclass
class FeedforwardConfig:
    """Options that every feed-forward layer has; a layer's own config derives from this one."""

    name: str  # of the registry
    dim_model: int
    dropout: float
    activation: Activation


class Feedforward(nn.Module, metaclass=ABCMeta):
    """Base of feed-forward layers: `forward(inputs)`, `[batch, seqlen, dim_model]` to the same shape."""

    def __init__(self, *_: object, **__: object):
        super().__init__()
        warn_deprecated(type(self).__name__, stacklevel=4)
        self.requires_cuda = False
        self.requires_squared_context = False  # the sequence is a square grid of tokens

    @classmethod
    def from_config(cls, config: FeedforwardConfig) -> Feedforward:
        """With the config's fields; those that are None take the constructor's default."""
        return cls(**options_of(config))

    @abstractmethod
    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor: ...


__all__ = ["Feedforward", "FeedforwardConfig"]
