"""Keys anywhere: each sequence has a start and a length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import CAUSAL_BOTTOM_RIGHT, Device, altered
from .paged import check_tables, make_paged
from .seqinfo import _GappySeqInfo, _SeqLenInfo, check_same_count, to_int32
from .sequences import SequencesBias


@dataclass(eq=False)
class BlockDiagonalGappyKeysMask(SequencesBias):
    """Queries one after the other; the keys of sequence b are [start_b, start_b + length_b). Ranges may overlap, come
    in any order and leave gaps, which are never read."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int], kv_seqstarts: Sequence[int], kv_seqlen: Sequence[int], *, device: Device = None
    ) -> Any:
        """`kv_seqstarts` has one entry more than there are sequences: the total length of the keys."""
        check_same_count(q_seqlen, kv_seqlen)
        return cls(
            q_seqinfo=_SeqLenInfo.from_seqlens(q_seqlen, device=device),
            k_seqinfo=_GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, paged=False, device=device),
        )

    def make_paged(self, block_tables: torch.Tensor, page_size: int, notional_padding: int, paged_type: type) -> Any:
        """The same sequences with their keys in pages. Sequence b's start counts from b * `notional_padding` here, and
        from the start of its own pages there."""
        room = check_tables(block_tables, page_size, len(self.k_seqinfo.seqlen_py))
        starts = []
        for b, length in enumerate(self.k_seqinfo.seqlen_py):
            start = self.k_seqinfo.seqstart_py[b] - b * notional_padding
            if start < 0 or start + length > room or (start == room and room):
                raise ValueError(
                    f"attn_bias: the keys of sequence {b} are [{start}, {start + length}) of its own pages, expected a "
                    f"range inside [0, {room}).  Fix: notional_padding is the distance of the sequences here."
                )
            starts.append(start)
        k_seqinfo = altered(
            self.k_seqinfo,
            seqstart=to_int32(starts, self.k_seqinfo.seqstart.device),
            seqstart_py=starts,
        )
        return make_paged(self, paged_type, block_tables, page_size, k_seqinfo, [])

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        *others, starts = super()._operands(device)
        if not self.k_seqinfo._disjoint:
            starts = starts[:-1]  # without the total: the operator's way to hear that keys may be shared
        return (*others, starts, self.k_seqinfo._on(self.k_seqinfo.seqlen, device))


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """The same, causal: the last query of a sequence sees all its keys."""

    _BAND = CAUSAL_BOTTOM_RIGHT
