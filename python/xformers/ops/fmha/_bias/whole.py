"""One band over the whole of every batch element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .base import CAUSAL_BOTTOM_RIGHT, AttentionBias, Band, Device, LoweredBias, check_window

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "LocalAttentionFromBottomRightMask",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
]


class BandMask(AttentionBias):
    """A band and nothing else: holds no tensor."""

    def to(self, device: Device) -> Self:
        """Itself: there is nothing to move."""
        return self

    def lower(self, device: torch.device) -> LoweredBias:
        return LoweredBias(None, *self._BAND)


class LowerTriangularFromBottomRightMask(BandMask):
    """Causal, aligned so that the last query sees every key: j <= i + nk - nq."""

    _BAND = CAUSAL_BOTTOM_RIGHT

    def make_local_attention(self, window_size: int) -> LowerTriangularFromBottomRightLocalAttentionMask:
        """The same, and no further back than the `window_size` last keys. ValueError unless it is 1 or more."""
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)


@dataclass(eq=False)
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """Causal from the bottom-right corner, the diagonal and the `_window_size` - 1 keys before it."""

    _window_size: int

    def __post_init__(self) -> None:
        check_window(self._window_size)

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self._window_size - 1, 0, True)


@dataclass(eq=False)
class LocalAttentionFromBottomRightMask(BandMask):
    """A window around the bottom-right diagonal: i + nk - nq - window_left <= j <= i + nk - nq + window_right.
    ValueError for a negative one."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        torch.ops.xformers._bias_check_windows(self.window_left, self.window_right)

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self.window_left, self.window_right, True)
