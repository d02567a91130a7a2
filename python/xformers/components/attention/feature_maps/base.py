"""What every feature map is."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from xformers.utils import options_of


@dataclass
class FeatureMapConfig:
    """Options of a `FeatureMap`, and under which name `build_feature_map` finds it."""

    name: str
    dim_features: int
    iter_before_redraw: int | None
    normalize_inputs: bool | None
    epsilon: float | None


class FeatureMap(nn.Module, metaclass=ABCMeta):
    """x `[..., seqlen, head_dim]` to features `[..., seqlen, dim_features]`, by random directions `features`,
    `[head_dim, dim_feature_map]`.

    The directions are drawn at the first call, with the default generator, and again after `iter_before_redraw` calls
    (never, if None). They are a buffer that state dicts leave out.
    """

    features: torch.Tensor | None

    def __init__(
        self,
        dim_features: int,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        epsilon: float = 1e-6,
        *_: object,
        **__: object,
    ):
        super().__init__()
        self.dim_features = dim_features
        self.dim_feature_map = dim_features
        self.iter_before_redraw = iter_before_redraw
        self.normalize_inputs = normalize_inputs
        self.epsilon = epsilon
        self.calls = 0
        self.register_buffer("features", None, persistent=False)

    @abstractmethod
    def draw(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """New directions, `[head_dim, dim_feature_map]`."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The directions for another call with x; drawn where it is time for that."""
        features = self.features
        worn_out = self.iter_before_redraw is not None and self.calls >= self.iter_before_redraw
        if features is None or worn_out or features.device != x.device or features.shape[0] != x.shape[-1]:
            features = self.draw(x.shape[-1], x.device)
            self.features = features
            self.calls = 0
        if self.iter_before_redraw is not None:
            self.calls += 1
        return features

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...

    @classmethod
    def from_config(cls, config: FeatureMapConfig) -> FeatureMap:
        """With the config's fields; those that are None take the constructor's default."""
        return cls(**options_of(config))


__all__ = ["FeatureMap", "FeatureMapConfig"]
