"""Keys in pages: key t of sequence b lies in row block_tables[b, t // page_size] * page_size + t % page_size of K and
V, which have shape [1, pages * page_size, (groups,) heads, head_dim]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .base import CAUSAL_BOTTOM_RIGHT, Device, LoweredBias
from .gappy import BlockDiagonalGappyKeysMask
from .padded import BlockDiagonalCausalWithOffsetPaddedKeysMask, BlockDiagonalPaddedKeysMask
from .seqinfo import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo, check_same_count
from .sequences import SequencesBias

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask",
    "PagedBlockDiagonalGappyKeysMask",
    "PagedBlockDiagonalPaddedKeysMask",
]


class PagedBias(SequencesBias):
    """What paged biases have in common. Pages may be shared between sequences and come in any order; entries of the
    table past a sequence's length are not read."""

    _UNPAGED_TYPE: ClassVar[type]
    block_tables: torch.Tensor  # int32 [sequences, pages of the longest]
    page_size: int

    def to(self, device: Device) -> Self:
        """The same bias, table included, on another device."""
        moved = super().to(device)
        moved.block_tables = self.block_tables.to(device)
        return moved

    def lower(self, device: torch.device) -> LoweredBias:
        q = self.q_seqinfo
        starts, used = self._keys(device)
        return LoweredBias(
            self._scores, *self._BAND, q._on(q.seqstart, device), starts, used, self.block_tables, self.page_size
        )

    def _keys(self, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Where the keys start in a sequence's own pages (None: at their start), and how many there are."""
        return self.k_seqinfo._keys(device)

    @classmethod
    def _build(cls, device: Device, q_seqlen: Sequence[int], k_seqinfo: Any, **table: Any) -> Self:
        where = table["block_tables"].device if device is None else device
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=where)
        # Lengths built beside the table, for want of a device, follow the inputs all the same.
        q_seqinfo._device_given = k_seqinfo._device_given = device is not None
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo, **table)


@dataclass(eq=False)
class PagedBlockDiagonalPaddedKeysMask(PagedBias):
    """Queries one after the other; the keys of sequence b are the first ones of its own pages."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _PaddedSeqLenInfo
    block_tables: torch.Tensor
    page_size: int

    _UNPAGED_TYPE = BlockDiagonalPaddedKeysMask

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: torch.Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Self:
        """One pair of lengths and one row of `block_tables`, int32 [sequences, pages], per sequence."""
        check_same_count(q_seqlen, kv_seqlen)
        torch.ops.xformers._bias_check_tables(block_tables, page_size, list(kv_seqlen))
        room, where = block_tables.shape[1] * page_size, block_tables.device if device is None else device
        k_seqinfo = _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, room, device=where)
        return cls._build(device, q_seqlen, k_seqinfo, block_tables=block_tables, page_size=page_size)

    def _keys(self, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor]:
        return None, self.k_seqinfo._on(self.k_seqinfo.seqlen, device)


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """The same, causal: the last query of a sequence sees all its keys."""

    _BAND = CAUSAL_BOTTOM_RIGHT
    _UNPAGED_TYPE = BlockDiagonalCausalWithOffsetPaddedKeysMask


@dataclass(eq=False)
class PagedBlockDiagonalGappyKeysMask(PagedBias):
    """Queries one after the other; the keys of sequence b are [start_b, start_b + length_b), counted in its own
    pages."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo
    block_tables: torch.Tensor
    page_size: int

    _UNPAGED_TYPE = BlockDiagonalGappyKeysMask

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: torch.Tensor,
        page_size: int,
        *,
        device: Device = None,
    ) -> Self:
        """One query length, start, key length and row of `block_tables` per sequence; starts count in its own pages."""
        check_same_count(q_seqlen, kv_seqlen)
        where = block_tables.device if device is None else device
        k_seqinfo = _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, paged=True, device=where)
        torch.ops.xformers._bias_check_tables(block_tables, page_size, [end for _, end in k_seqinfo.intervals()])
        return cls._build(device, q_seqlen, k_seqinfo, block_tables=block_tables, page_size=page_size)
