"""The biases over keys in pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import CAUSAL_BOTTOM_RIGHT, Device
from .gappy import BlockDiagonalGappyKeysMask
from .padded import BlockDiagonalCausalWithOffsetPaddedKeysMask, BlockDiagonalPaddedKeysMask
from .paged import PagedBias, check_room, check_tables
from .seqinfo import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo, check_same_count


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
    ) -> Any:
        """One pair of lengths and one row of `block_tables`, int32 [sequences, pages], per sequence."""
        check_same_count(q_seqlen, kv_seqlen)
        room = check_tables(block_tables, page_size, len(kv_seqlen))
        check_room(kv_seqlen, room)
        return _follow(
            cls(
                q_seqinfo=_SeqLenInfo.from_seqlens(q_seqlen, device=_device(device, block_tables)),
                k_seqinfo=_PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, room, device=_device(device, block_tables)),
                block_tables=block_tables,
                page_size=page_size,
            ),
            device,
        )

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        q, k = self.q_seqinfo, self.k_seqinfo
        return (None, *self._BAND, q._on(q.seqstart, device), None, k._on(k.seqlen, device))

    def _key_ranges(self) -> list[tuple[int, int]]:
        return [(0, end - start) for start, end in self.k_seqinfo._ranges()]


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
    ) -> Any:
        """One query length, start, key length and row of `block_tables` per sequence; starts count in its own pages."""
        check_same_count(q_seqlen, kv_seqlen)
        room = check_tables(block_tables, page_size, len(kv_seqlen))
        k_seqinfo = _GappySeqInfo.from_seqlens_gappy(
            kv_seqstarts, kv_seqlen, paged=True, device=_device(device, block_tables)
        )
        check_room([end for _, end in k_seqinfo.intervals()], room)
        return _follow(
            cls(
                q_seqinfo=_SeqLenInfo.from_seqlens(q_seqlen, device=_device(device, block_tables)),
                k_seqinfo=k_seqinfo,
                block_tables=block_tables,
                page_size=page_size,
            ),
            device,
        )

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        q, k = self.q_seqinfo, self.k_seqinfo
        starts, used = k._on(k.seqstart, device), k._on(k.seqlen, device)
        return (None, *self._BAND, q._on(q.seqstart, device), starts, used)

    def _key_ranges(self) -> list[tuple[int, int]]:
        return self.k_seqinfo._ranges()


def _device(device: Device, block_tables: torch.Tensor) -> Device:
    return block_tables.device if device is None else device


def _follow(bias: Any, device: Device) -> Any:
    """Lengths built beside the table, for want of a device, follow the inputs all the same."""
    if device is None:
        bias.q_seqinfo._device_given = bias.k_seqinfo._device_given = False
    return bias
