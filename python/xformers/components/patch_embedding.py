"""Patches of images as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import torch
from torch import nn

from xformers.utils import warn_unknown_options


class PoolType(str, Enum):
    """How patches are made."""

    Conv2D = "CONV_2D"


@dataclass
class PatchEmbeddingConfig:
    """Options of a patch embedding.

    Patches of `kernel_size`, `stride` apart, of an image padded by `padding`: `in_channels` to `out_channels`.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int = 0
    pool_type: PoolType = PoolType.Conv2D


class ConditionalReshape(nn.Module):
    """Images `[batch, channels, height, width]` as they are; tokens of a square grid `[batch, side * side, channels]`
    as such an image, channels last in memory. ValueError for another number of tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.tokens_to_grid(x)


class PatchToSequence(nn.Module):
    """`[batch, channels, height, width]` to `[batch, height * width, channels]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.grid_to_tokens(x)


def build_patch_embedding(config: PatchEmbeddingConfig | Mapping[str, Any]) -> nn.Module:
    """A Sequential of ConditionalReshape, a convolution and PatchToSequence: `[batch, patches, out_channels]`.

    config: a dict (which stays as it is) or a PatchEmbeddingConfig. NotImplementedError for another pool type.
    """
    if isinstance(config, Mapping):
        known = [field.name for field in fields(PatchEmbeddingConfig)]
        warn_unknown_options("build_patch_embedding", config, known)
        config = PatchEmbeddingConfig(**{name: config[name] for name in known if name in config})
    if config.pool_type != PoolType.Conv2D:
        raise NotImplementedError(
            f"build_patch_embedding: pool_type is {config.pool_type!r}, expected {PoolType.Conv2D.value!r}.  "
            "Fix: leave it out."
        )
    convolution = nn.Conv2d(
        config.in_channels,
        config.out_channels,
        kernel_size=config.kernel_size,
        stride=config.stride,
        padding=config.padding,
    )
    return nn.Sequential(ConditionalReshape(), convolution, PatchToSequence())


__all__ = ["ConditionalReshape", "PatchEmbeddingConfig", "PatchToSequence", "PoolType", "build_patch_embedding"]
