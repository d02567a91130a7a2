"""What every attention mechanism is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._deprecation import warn_deprecated
from xformers.utils import options_of


@dataclass
class AttentionConfig:
    """Options that every attention has; a mechanism's own config derives from this one."""

    name: str  # of the registry
    dropout: float  # probability of dropping an attention weight


class Attention(nn.Module, metaclass=ABCMeta):
    """Base of attentions: `forward(q, k, v, ...)`, q, k, v `[batch * heads, seqlen, head_dim]`, heads folded b-major.

    The flags say what `MultiHeadDispatch` hands over. They are read at every call, so they may be changed on an
    instance. A subclass calls `super().__init__` and is built by `build_attention` once it is registered.
    """

    def __init__(self, dropout: float | None = None, *_: object, **__: object):
        super().__init__()
        warn_deprecated(type(self).__name__, stacklevel=4)
        self.requires_input_projection = True  # q, k and v are projections
        self.requires_head_dimension = False  # q, k, v [batch, heads, seqlen, head_dim]
        self.requires_separate_masks = False  # att_mask and key_padding_mask as they came, not merged
        self.requires_same_k_q_dimensions = False  # as many keys as queries
        self.requires_skip_multi_head = False  # takes [batch, seqlen, dim_model], no projection after it
        self.requires_squared_context = False  # the sequence is a square grid of tokens
        self.supports_attention_mask = True
        self.supports_key_padding_mask = False

    @classmethod
    def from_config(cls, config: AttentionConfig) -> Attention:
        """With the config's fields; those that are None take the constructor's default."""
        return cls(**options_of(config))

    @abstractmethod
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor: ...

    @staticmethod
    def _maybe_pad_sequence(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x `[N, S, K]`, followed by zeros up to the width of the mask. AssertionError where x is longer."""
        width = mask.shape[-1]
        assert x.shape[-2] <= width, (
            f"attention: the sequence has length {x.shape[-2]}, expected at most {width}, the width of the mask.  "
            "Fix: build the attention for longer sequences."
        )
        if x.shape[-2] == width:
            return x
        return nn.functional.pad(x, (0, 0, 0, width - x.shape[-2]))


__all__ = ["Attention", "AttentionConfig"]
