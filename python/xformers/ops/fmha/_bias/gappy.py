"""Keys anywhere: each sequence has a start and a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .base import CAUSAL_BOTTOM_RIGHT, Device, T, altered
from .seqinfo import _GappySeqInfo, _SeqLenInfo, check_same_count, to_int32
from .sequences import SequencesBias, make_paged

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BlockDiagonalCausalWithOffsetGappyKeysMask", "BlockDiagonalGappyKeysMask"]


@dataclass(eq=False)
class BlockDiagonalGappyKeysMask(SequencesBias):
    """Queries one after the other; the keys of sequence b are [start_b, start_b + length_b). Ranges may overlap, come
    in any order and leave gaps, which are never read."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _GappySeqInfo

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int], kv_seqstarts: Sequence[int], kv_seqlen: Sequence[int], *, device: Device = None
    ) -> Self:
        """`kv_seqstarts` has one entry more than there are sequences: the total length of the keys."""
        check_same_count(q_seqlen, kv_seqlen)
        return cls(
            q_seqinfo=_SeqLenInfo.from_seqlens(q_seqlen, device=device),
            k_seqinfo=_GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, paged=False, device=device),
        )

    def make_paged(self, block_tables: torch.Tensor, page_size: int, notional_padding: int, paged_type: type[T]) -> T:
        """The same sequences with their keys in pages. Sequence b's start counts from b * `notional_padding` here, and
        from the start of its own pages there. ValueError for starts or a table that do not hold them."""
        k = self.k_seqinfo
        lengths = list(k.seqlen_py)
        torch.ops.xformers._bias_check_paged_starts(k.seqstart_py, lengths, block_tables, page_size, notional_padding)
        starts = [start - b * notional_padding for b, (start, _) in enumerate(k.intervals())]
        seqstart = to_int32(starts, k.seqstart.device)
        k_seqinfo = altered(k, seqstart=seqstart, seqstart_py=starts, _shares_keys=False)
        return make_paged(self, paged_type, block_tables, page_size, k_seqinfo)

    def _total_keys(self) -> int:
        return self.k_seqinfo.seqstart_py[-1]


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """The same, causal: the last query of a sequence sees all its keys."""

    _BAND = CAUSAL_BOTTOM_RIGHT
