"""One band over the whole of every batch element."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import CAUSAL_BOTTOM_RIGHT, AttentionBias, Band, Device, check_window, materialize_band


class BandMask(AttentionBias):
    """A band and nothing else: holds no tensor."""

    def to(self, device: Device) -> Any:
        return self

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        return (None, *self._BAND)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        return materialize_band(shape[-2], shape[-1], self._BAND, dtype, device).expand(*shape)


class LowerTriangularFromBottomRightMask(BandMask):
    """Causal, aligned so that the last query sees every key: j <= i + nk - nq."""

    _BAND = CAUSAL_BOTTOM_RIGHT

    def make_local_attention(self, window_size: int) -> "LowerTriangularFromBottomRightLocalAttentionMask":
        """The same, and no further back than the `window_size` last keys."""
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
    """A window around the bottom-right diagonal: i + nk - nq - window_left <= j <= i + nk - nq + window_right."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        for name in ("window_left", "window_right"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"attn_bias: {name} is {getattr(self, name)}, expected 0 or more.  Fix: 0 sees the diagonal alone."
                )

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self.window_left, self.window_right, True)
