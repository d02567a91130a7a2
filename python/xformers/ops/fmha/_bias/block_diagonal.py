"""Packed sequences: queries and keys of all sequences lie one after the other, without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .base import CAUSAL, CAUSAL_BOTTOM_RIGHT, Band, Device, check_window
from .seqinfo import _SeqLenInfo, check_same_count
from .sequences import SequencesBias

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BlockDiagonalCausalFromBottomRightMask",
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    "BlockDiagonalCausalLocalAttentionMask",
    "BlockDiagonalCausalMask",
    "BlockDiagonalMask",
]


@dataclass(eq=False)
class BlockDiagonalMask(SequencesBias):
    """Packed sequences: inputs of batch 1 hold all sequences one after the other, and every query sees the keys of its
    own sequence only. Build it with `from_seqlens` or `from_tensor_list`."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _SeqLenInfo
    _batch_sizes: Sequence[int] | None = None

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int], kv_seqlen: Sequence[int] | None = None, *, device: Device = None
    ) -> Self:
        """One block per pair of lengths; keys have the lengths of the queries unless `kv_seqlen` is given. Without a
        device the bias works with inputs on any."""
        q_seqinfo = k_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
        if kv_seqlen is not None:
            check_same_count(q_seqlen, kv_seqlen)
            if list(kv_seqlen) != list(q_seqlen):
                k_seqinfo = _SeqLenInfo.from_seqlens(kv_seqlen, device=device)
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[torch.Tensor]) -> tuple[Self, torch.Tensor]:
        """Tensors [batch_i, seqlen_i, *] -> the bias, with a block per row, and their concatenation
        [1, sum of batch_i * seqlen_i, *]. ValueError without tensors."""
        packed = torch.ops.xformers._bias_concatenate(tensors)
        bias = cls.from_seqlens(_seqlens_of(tensors), device=packed.device)
        bias._batch_sizes = [x.shape[0] for x in tensors]
        return bias, packed

    @classmethod
    def from_tensor_lists_qkv(
        cls,
        tensors_q: Sequence[torch.Tensor],
        tensors_k: Sequence[torch.Tensor],
        tensors_v: Sequence[torch.Tensor] | None = None,
    ) -> tuple[Self, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The same for queries and keys of different lengths; returns (bias, query, key, value or None). ValueError
        unless keys have the queries' batch sizes, and values the keys' sizes."""
        torch.ops.xformers._bias_check_lists(tensors_q, tensors_k, tensors_v or [])
        query, key = (torch.ops.xformers._bias_concatenate(tensors) for tensors in (tensors_q, tensors_k))
        value = torch.ops.xformers._bias_concatenate(tensors_v) if tensors_v is not None else None
        bias = cls.from_seqlens(_seqlens_of(tensors_q), _seqlens_of(tensors_k), device=query.device)
        bias._batch_sizes = [x.shape[0] for x in tensors_q]
        return bias, query, key, value

    def split_queries(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation of the queries."""
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation of the keys and values."""
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation, where queries and keys have the same lengths: a ValueError where not."""
        if self.q_seqinfo is not self.k_seqinfo and self.q_seqinfo.seqstart_py != self.k_seqinfo.seqstart_py:
            raise ValueError(
                "attn_bias: queries and keys have different lengths, expected the same.  "
                "Fix: use split_queries or split_kv."
            )
        return self.split_queries(tensor)

    def make_causal(self) -> BlockDiagonalCausalMask:
        """The same blocks, causal inside, aligned top-left."""
        return BlockDiagonalCausalMask(*self._blocks(), _scores=self._scores)

    def make_causal_from_bottomright(self) -> BlockDiagonalCausalFromBottomRightMask:
        """The same blocks, causal inside, the last query of each seeing all its keys."""
        return BlockDiagonalCausalFromBottomRightMask(*self._blocks(), _scores=self._scores)

    def make_local_attention(self, window_size: int) -> BlockDiagonalCausalLocalAttentionMask:
        """Causal from the top-left corner, and no further back than the last `window_size` keys."""
        return BlockDiagonalCausalLocalAttentionMask(*self._blocks(), window_size, _scores=self._scores)

    def make_local_attention_from_bottomright(
        self, window_size: int
    ) -> BlockDiagonalCausalLocalAttentionFromBottomRightMask:
        """Causal from the bottom-right corner, and no further back than the last `window_size` keys."""
        return BlockDiagonalCausalLocalAttentionFromBottomRightMask(*self._blocks(), window_size, _scores=self._scores)

    def _blocks(self) -> tuple[_SeqLenInfo, _SeqLenInfo, Sequence[int] | None]:
        return self.q_seqinfo, self.k_seqinfo, self._batch_sizes

    def _check_blocks(self) -> None:
        """An error where the band hides every key from a query."""
        torch.ops.xformers._bias_check_blocks(self.q_seqinfo.seqstart_py, self.k_seqinfo.seqstart_py, *self._BAND)


@dataclass(eq=False)
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Packed sequences, causal from the top-left corner of each: j <= i."""

    _BAND = CAUSAL


@dataclass(eq=False)
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """Packed sequences, causal from the bottom-right corner of each: j <= i + nk - nq. No sequence may have more
    queries than keys."""

    _BAND = CAUSAL_BOTTOM_RIGHT

    def __post_init__(self) -> None:
        self._check_blocks()


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """Packed sequences, causal from the top-left corner, with a window: i - _window_size < j <= i."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        check_window(self._window_size)
        self._check_blocks()

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self._window_size - 1, 0, False)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """Packed sequences, causal from the bottom-right corner, with a window: i + d - _window_size < j <= i + d, where
    d = nk - nq."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        check_window(self._window_size)
        self._check_blocks()

    @property
    def _BAND(self) -> Band:  # type: ignore[override]
        return (self._window_size - 1, 0, True)


def _seqlens_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Of every row of tensors [batch, seqlen, *]."""
    return [x.shape[1] for x in tensors for _ in range(x.shape[0])]
