"""Keys in pages: key t of sequence b lies in row block_tables[b, t // page_size] * page_size + t % page_size of K and
V, which have shape [1, pages * page_size, (groups,) heads, head_dim]."""

import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from .base import AttentionBias, Device, materialize_band
from .sequences import SequencesBias, check_totals


class PagedBias(SequencesBias):
    """What paged biases have in common. Pages may be shared between sequences and come in any order; entries of the
    table past a sequence's length are not read."""

    _UNPAGED_TYPE: ClassVar[type]
    block_tables: torch.Tensor  # int32 [sequences, pages of the longest]
    page_size: int

    def to(self, device: Device) -> Any:
        """The same bias, table included, on another device."""
        moved = super().to(device)
        moved.block_tables = self.block_tables.to(device)
        return moved

    def _paging(self, device: torch.device) -> dict[str, Any]:
        return {"page_table": self.block_tables, "page_size": self.page_size}

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        """`shape` counts keys logically: sequences * pages * page_size. The result counts them as K does: its last
        dimension is (largest page + 1) * page_size."""
        pages = self.block_tables.tolist()
        room = self.block_tables.shape[1] * self.page_size
        check_totals(shape, self.q_seqinfo.seqstart_py[-1], len(pages) * room)
        width = (max((max(row, default=-1) for row in pages), default=-1) + 1) * self.page_size
        mask = torch.full((shape[-2], width), -torch.inf, dtype=dtype, device=device)
        size = self.page_size
        for table, (q0, q1), (k0, k1) in zip(pages, self.q_seqinfo._ranges(), self._key_ranges(), strict=False):
            block = torch.full((q1 - q0, room), -torch.inf, dtype=dtype, device=device)
            block[:, k0:k1] = materialize_band(q1 - q0, k1 - k0, self._BAND, dtype, device)
            for page in range(k0 // size, -(-k1 // size)):  # those that hold keys
                mask[q0:q1, table[page] * size : (table[page] + 1) * size] = block[:, page * size : (page + 1) * size]
        return mask.expand(*shape[:-1], width)

    def _key_ranges(self) -> list[tuple[int, int]]:
        """[first, end) of every sequence's keys, counted in its own pages."""
        raise NotImplementedError


def check_tables(block_tables: torch.Tensor, page_size: int, sequences: int) -> int:
    """The number of keys that a row of the table has room for, after checks."""
    if operator.index(page_size) <= 0:
        raise ValueError(
            f"attn_bias: page_size is {page_size}, expected 1 or more.  Fix: it is a page's number of keys."
        )
    if block_tables.ndim != 2 or block_tables.shape[0] != sequences:
        raise ValueError(
            f"attn_bias: block_tables has shape {list(block_tables.shape)}, expected [{sequences}, pages].  "
            "Fix: give one row of page numbers per sequence."
        )
    if block_tables.dtype != torch.int32:
        raise ValueError(
            f"attn_bias: block_tables.dtype is {block_tables.dtype}, expected torch.int32.  "
            "Fix: block_tables.to(torch.int32)."
        )
    return block_tables.shape[1] * page_size


def check_room(lengths: Sequence[int], room: int) -> None:
    if any(length > room for length in lengths):
        raise ValueError(
            f"attn_bias: the longest sequence of keys is {max(lengths)}, expected at most {room}, what a row of "
            "block_tables holds.  Fix: give more pages."
        )


def make_paged(
    bias: AttentionBias,
    paged_type: type,
    block_tables: torch.Tensor,
    page_size: int,
    k_seqinfo: Any,
    lengths: Sequence[int],
) -> Any:
    """`paged_type` for an unpaged bias, whose pattern it must keep."""
    unpaged = getattr(paged_type, "_UNPAGED_TYPE", None)
    if unpaged is None or not isinstance(bias, unpaged) or bias._BAND != unpaged._BAND:
        raise ValueError(
            f"attn_bias: paged_type is {getattr(paged_type, '__name__', paged_type)}, expected the paged form of "
            f"{type(bias).__name__}.  Fix: a type whose _UNPAGED_TYPE masks as this bias does."
        )
    check_room(lengths, block_tables.shape[1] * page_size)
    return paged_type(q_seqinfo=bias.q_seqinfo, k_seqinfo=k_seqinfo, block_tables=block_tables, page_size=page_size)
