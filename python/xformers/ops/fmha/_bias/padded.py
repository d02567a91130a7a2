"""Keys in slots of equal size, as a cache for decoding has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .base import CAUSAL_BOTTOM_RIGHT, Band, Device, T, check_window
from .seqinfo import _PaddedSeqLenInfo, _SeqLenInfo, check_same_count
from .sequences import SequencesBias, make_paged

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
    "BlockDiagonalCausalWithOffsetPaddedKeysMask",
    "BlockDiagonalPaddedKeysMask",
]


@dataclass(eq=False)
class BlockDiagonalPaddedKeysMask(SequencesBias):
    """Queries one after the other; the keys of sequence b in slot [b * padding, (b + 1) * padding), from its start.
    What lies behind them in a slot is never read."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_padding: int,
        kv_seqlen: Sequence[int],
        causal_diagonal: Any = None,
        *,
        device: Device = None,
    ) -> Self:
        """One sequence per pair of lengths; key lengths are at most `kv_padding` and may be 0. `causal_diagonal` has no
        effect."""
        return cls(**_seqinfos(q_seqlen, kv_padding, kv_seqlen, device))

    def make_paged(self, block_tables: torch.Tensor, page_size: int, paged_type: type[T]) -> T:
        """The same sequences with their keys in pages (see `PagedBlockDiagonalPaddedKeysMask`). This bias stays as it
        is. ValueError for a table that does not hold them."""
        torch.ops.xformers._bias_check_tables(block_tables, page_size, list(self.k_seqinfo.seqlen_py))
        k_seqinfo = self.k_seqinfo.with_padding(block_tables.shape[1] * page_size)
        return make_paged(self, paged_type, block_tables, page_size, k_seqinfo)


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """The same, causal: the last query of a sequence sees all its keys."""

    causal_diagonal: Any = None  # without effect; kept for programs that give it

    _BAND = CAUSAL_BOTTOM_RIGHT


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """The same, causal with a window: the last query of a sequence sees its last `_window_size` keys."""

    _window_size: int

    def __post_init__(self) -> None:
        check_window(self._window_size)

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self._window_size - 1, 0, True)

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_padding: int,
        kv_seqlen: Sequence[int],
        causal_diagonal: Any = None,
        *,
        window_size: int = 0,
        device: Device = None,
    ) -> Self:
        """As `from_seqlens_local`."""
        return cls.from_seqlens_local(q_seqlen, kv_padding, kv_seqlen, window_size, device=device)

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Sequence[int],
        kv_padding: int,
        kv_seqlen: Sequence[int],
        window_size: int,
        *,
        device: Device = None,
    ) -> Self:
        """One sequence per pair of lengths; `window_size` counts the diagonal."""
        return cls(**_seqinfos(q_seqlen, kv_padding, kv_seqlen, device), _window_size=window_size)


def _seqinfos(q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], device: Device) -> dict[str, Any]:
    check_same_count(q_seqlen, kv_seqlen)
    return {
        "q_seqinfo": _SeqLenInfo.from_seqlens(q_seqlen, device=device),
        "k_seqinfo": _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding, device=device),
    }
