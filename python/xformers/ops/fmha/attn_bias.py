"""What can hide scores from attention: bias classes, and what each lowers to.

A bias is a band (who sees whom) in a layout (who is there). With query i and key j counted from the start of their
sequence of nq queries and nk keys, and the diagonal d(i) = i (top-left) or i + nk - nq (bottom-right), key j is visible
iff ``d(i) - window_left <= j <= d(i) + window_right``; -1 lifts a side.

To add one: a class here with its `_BAND`, the struct in xformers/ops/attention/attn_bias.h, a row in
docs/ops/attention.md.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

Device = str | int | torch.device | None
Band = tuple[int, int, bool]  # window_left, window_right, bottom_right

_FULL: Band = (-1, -1, False)
_CAUSAL: Band = (-1, 0, False)
_CAUSAL_BOTTOM_RIGHT: Band = (-1, 0, True)


class AttentionBias:
    """Base class of all biases."""

    HOLDS_DENSE_TENSOR: ClassVar[bool] = False
    _TAKES_3D: ClassVar[bool] = False  # inputs [batch, seqlen, head_dim]
    _BAND: ClassVar[Band] = _FULL

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        """Arguments of the operator after query, key and value."""
        return (None, *self._BAND)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        """The bias as a tensor of `shape` ([..., seqlen_q, seqlen_k]): 0 where attended, -inf elsewhere. For tests."""
        raise NotImplementedError(f"{type(self).__name__} has no materialize")


def _materialize_band(nq: int, nk: int, band: Band, dtype: torch.dtype, device: Device) -> torch.Tensor:
    left, right, bottom_right = band
    diagonal = torch.arange(nq, device=device)[:, None] + (nk - nq if bottom_right else 0)
    key = torch.arange(nk, device=device)[None, :]
    hidden = torch.zeros(nq, nk, dtype=torch.bool, device=device)
    if left >= 0:
        hidden |= key < diagonal - left
    if right >= 0:
        hidden |= key > diagonal + right
    return torch.zeros(nq, nk, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


class _BandMask(AttentionBias):
    """One band over the whole of every batch element."""

    def to(self, device: Device) -> "AttentionBias":
        return self  # holds no tensor

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        return _materialize_band(shape[-2], shape[-1], self._BAND, dtype, device).expand(*shape)


class LowerTriangularMask(_BandMask):
    """Causal: query i sees the keys j <= i."""

    _TAKES_3D = True
    _BAND = _CAUSAL


class LowerTriangularFromBottomRightMask(_BandMask):
    """Causal, aligned so that the last query sees every key: j <= i + nk - nq."""

    _BAND = _CAUSAL_BOTTOM_RIGHT


@dataclass(eq=False)
class LocalAttentionFromBottomRightMask(_BandMask):
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


def _default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(eq=False)
class _SeqLenInfo:
    """Sequences that lie one after the other: sequence b is [seqstart[b], seqstart[b + 1])."""

    seqstart: torch.Tensor  # int32 [sequences + 1]
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]  # the same numbers on the host
    _device_given: bool = False  # else seqstart follows the inputs to their device

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> "_SeqLenInfo":
        if isinstance(seqlens, torch.Tensor):
            raise ValueError("attn_bias: the lengths are a tensor, expected Python ints.  Fix: pass seqlens.tolist().")
        lengths = [operator.index(seqlen) for seqlen in seqlens]
        seqstart_py = [0]
        for seqlen in lengths:
            if seqlen < 0:
                raise ValueError(
                    f"attn_bias: a sequence length is {seqlen}, expected 0 or more.  Fix: pass lengths, not offsets."
                )
            seqstart_py.append(seqstart_py[-1] + seqlen)
        seqstart = torch.tensor(seqstart_py, dtype=torch.int32, device=_default_device() if device is None else device)
        return cls(
            seqstart=seqstart,
            max_seqlen=max(lengths, default=-1),
            min_seqlen=min(lengths, default=-1),
            seqstart_py=seqstart_py,
            _device_given=device is not None,
        )

    def intervals(self) -> Iterable[tuple[int, int]]:
        """(start, end) of every sequence."""
        return zip(self.seqstart_py, self.seqstart_py[1:], strict=False)

    def to(self, device: Device) -> "_SeqLenInfo":
        if self.seqstart.device == torch.device(device):
            return self
        return replace(self, seqstart=self.seqstart.to(device), _device_given=True)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        """[1, total, *] -> one [1, seqlen, *] per sequence, or [batch_size, seqlen, *] per run of `batch_sizes`."""
        if x.ndim < 2 or x.shape[0] != 1 or x.shape[1] != self.seqstart_py[-1]:
            raise ValueError(
                f"attn_bias: the tensor to split has shape {list(x.shape)}, "
                f"expected [1, {self.seqstart_py[-1]}, ...].  Fix: split what was concatenated for this bias."
            )
        if batch_sizes is None:
            batch_sizes = [1] * (len(self.seqstart_py) - 1)
        parts, sequence = [], 0
        for count in batch_sizes:
            begin, end = self.seqstart_py[sequence], self.seqstart_py[sequence + count]
            seqlen = (end - begin) // count if count else 0
            parts.append(x[0, begin:end].reshape(count, seqlen, *x.shape[2:]))
            sequence += count
        return parts

    def _on(self, device: torch.device) -> torch.Tensor:
        """seqstart for inputs on `device`."""
        if self.seqstart.device == device or self._device_given:  # the operator refuses a device that differs
            return self.seqstart
        return self.seqstart.to(device)


@dataclass(eq=False)
class BlockDiagonalMask(AttentionBias):
    """Packed sequences: inputs of batch 1 hold all sequences one after the other, and every query sees the keys of its
    own sequence only. Build it with `from_seqlens` or `from_tensor_list`."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: _SeqLenInfo
    _batch_sizes: Sequence[int] | None = None

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        return (None, *self._BAND, self.q_seqinfo._on(device), self.k_seqinfo._on(device))

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int], kv_seqlen: Sequence[int] | None = None, *, device: Device = None
    ) -> "BlockDiagonalMask":
        """One block per pair of lengths; keys have the lengths of the queries unless `kv_seqlen` is given. Without a
        device the bias works with inputs on any."""
        if kv_seqlen is not None and len(kv_seqlen) != len(q_seqlen):
            raise ValueError(
                f"attn_bias: there are {len(q_seqlen)} query lengths and {len(kv_seqlen)} key lengths, expected as "
                "many of each.  Fix: give one pair of lengths per sequence; 0 is a length."
            )
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
        if kv_seqlen is None or list(kv_seqlen) == list(q_seqlen):
            k_seqinfo = q_seqinfo
        else:
            k_seqinfo = _SeqLenInfo.from_seqlens(kv_seqlen, device=device)
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[torch.Tensor]) -> tuple["BlockDiagonalMask", torch.Tensor]:
        """Tensors [batch_i, seqlen_i, *] -> the bias, with a block per row, and their concatenation
        [1, sum of batch_i * seqlen_i, *]."""
        seqlens = [x.shape[1] for x in tensors for _ in range(x.shape[0])]
        bias = cls.from_seqlens(seqlens, device=_device_of(tensors))
        bias._batch_sizes = [x.shape[0] for x in tensors]
        return bias, _concatenate(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls,
        tensors_q: Sequence[torch.Tensor],
        tensors_k: Sequence[torch.Tensor],
        tensors_v: Sequence[torch.Tensor] | None = None,
    ) -> tuple["BlockDiagonalMask", torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The same for queries and keys of different lengths; returns (bias, query, key, value or None)."""
        batch_sizes = [x.shape[0] for x in tensors_q]
        if batch_sizes != [x.shape[0] for x in tensors_k]:
            raise ValueError(
                f"attn_bias: the queries' batch sizes are {batch_sizes}, the keys' {[x.shape[0] for x in tensors_k]}, "
                "expected the same.  Fix: give one key tensor per query tensor, with its batch size."
            )
        if tensors_v is not None and [v.shape[:2] for v in tensors_v] != [k.shape[:2] for k in tensors_k]:
            raise ValueError(
                "attn_bias: keys and values differ in batch size or length, expected the same.  "
                "Fix: give one value tensor per key tensor, with its first two sizes."
            )
        q_seqlens = [x.shape[1] for x in tensors_q for _ in range(x.shape[0])]
        k_seqlens = [x.shape[1] for x in tensors_k for _ in range(x.shape[0])]
        bias = cls.from_seqlens(q_seqlens, k_seqlens, device=_device_of(tensors_q))
        bias._batch_sizes = batch_sizes
        value = _concatenate(tensors_v) if tensors_v is not None else None
        return bias, _concatenate(tensors_q), _concatenate(tensors_k), value

    def split_queries(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation of the queries."""
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation of the keys and values."""
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of the concatenation, where queries and keys have the same lengths."""
        if self.q_seqinfo is not self.k_seqinfo and self.q_seqinfo.seqstart_py != self.k_seqinfo.seqstart_py:
            raise ValueError(
                "attn_bias: queries and keys have different lengths, expected the same.  "
                "Fix: use split_queries or split_kv."
            )
        return self.split_queries(tensor)

    def make_causal(self) -> "BlockDiagonalCausalMask":
        """The same blocks, causal inside."""
        return BlockDiagonalCausalMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def to(self, device: Device) -> "BlockDiagonalMask":
        q_seqinfo = self.q_seqinfo.to(device)
        k_seqinfo = q_seqinfo if self.k_seqinfo is self.q_seqinfo else self.k_seqinfo.to(device)
        return replace(self, q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        totals = [self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1]]
        if list(shape[-2:]) != totals:
            raise ValueError(
                f"attn_bias: the shape to materialize is {list(shape)}, expected [..., {totals[0]}, {totals[1]}].  "
                "Fix: use the total lengths of queries and keys."
            )
        mask = torch.full(tuple(shape[-2:]), -torch.inf, dtype=dtype, device=device)
        for (q0, q1), (k0, k1) in zip(self.q_seqinfo.intervals(), self.k_seqinfo.intervals(), strict=False):
            mask[q0:q1, k0:k1] = _materialize_band(q1 - q0, k1 - k0, self._BAND, dtype, device)
        return mask.expand(*shape)


@dataclass(eq=False)
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Packed sequences, causal from the top-left corner of each: j <= i."""

    _BAND = _CAUSAL


def _device_of(tensors: Sequence[torch.Tensor]) -> torch.device:
    if not tensors:
        raise ValueError(
            "attn_bias: the list of tensors is empty, expected at least one.  Fix: pass [batch, seqlen, ...]."
        )
    return tensors[0].device


def _concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.reshape(1, -1, *x.shape[2:]) for x in tensors], dim=1)
