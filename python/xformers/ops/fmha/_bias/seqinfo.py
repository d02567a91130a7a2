"""Where sequences lie in a tensor that holds them all. Public by use: programs read and rewrite these fields.

Results follow the device tensors (`seqstart`, `seqlen`), which a decoding loop edits in place; `*_py`, `max_seqlen` and
`min_seqlen` are the numbers from the time of building.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .base import Device, altered, default_device, is_at

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["_GappySeqInfo", "_PaddedSeqLenInfo", "_SeqLenInfo"]


def to_ints(numbers: Iterable[int], what: str) -> list[int]:
    """Python ints; ValueError for a tensor, TypeError for other numbers."""
    if isinstance(numbers, torch.Tensor):
        raise ValueError(f"attn_bias: the {what}s are a tensor, expected Python ints.  Fix: pass tensor.tolist().")
    return [operator.index(number) for number in numbers]


def to_int32(numbers: list[int], device: Device) -> torch.Tensor:
    """int32 on the device, without waiting for it."""
    device = default_device() if device is None else torch.device(device)
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int32, device=device)
    return torch.tensor(numbers, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)


def check_same_count(q_seqlen: Sequence[int], kv_seqlen: Sequence[int]) -> None:
    torch.ops.xformers._bias_check_count(len(q_seqlen), len(kv_seqlen))


def _share_keys(seqstart_py: Sequence[int], seqlen_py: Sequence[int]) -> bool:
    return torch.ops.xformers._bias_share_keys(list(seqstart_py), list(seqlen_py))


# As torch.compiler.assume_constant_result does, without its import of Dynamo, which takes no bool from an operator.
_share_keys._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(eq=False)
class _SeqLenInfo:
    """Sequences that lie one after the other: sequence b is [seqstart[b], seqstart[b + 1])."""

    seqstart: torch.Tensor  # int32 [sequences + 1]
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]  # the same numbers on the host

    _device_given = False  # else the tensors follow the inputs to their device

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> Self:
        lengths = to_ints(seqlens, "sequence length")
        torch.ops.xformers._bias_check_lengths(lengths)
        seqstart_py = [0]
        for seqlen in lengths:
            seqstart_py.append(seqstart_py[-1] + seqlen)
        return cls._build(device, lengths, seqstart_py)

    @classmethod
    def _build(cls, device: Device, lengths: list[int], seqstart_py: list[int], **fields: Any) -> Self:
        info = cls(
            seqstart=to_int32(seqstart_py, device),
            max_seqlen=max(lengths, default=-1),
            min_seqlen=min(lengths, default=-1),
            seqstart_py=seqstart_py,
            **fields,
        )
        if device is not None:
            info._device_given = True
        return info

    def intervals(self) -> Iterable[tuple[int, int]]:
        """(start, end) of every sequence, from the time of building."""
        return zip(self.seqstart_py, self.seqstart_py[1:], strict=False)

    def to(self, device: Device) -> Self:
        """The same on another device; itself if it is there already."""
        if is_at(self.seqstart, device):
            return self
        return altered(self, seqstart=self.seqstart.to(device), _device_given=True)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        """[1, total, *] -> one [1, seqlen, *] per sequence, or [batch_size, seqlen, *] per run of `batch_sizes`.
        ValueError for another shape, or runs of sequences of different lengths."""
        return torch.ops.xformers._bias_split(x, self.seqstart_py, batch_sizes or [])

    def _on(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One of its tensors, for inputs on `device`."""
        if tensor.device == device or self._device_given:  # the operator refuses a device that differs
            return tensor
        return tensor.to(device)

    def _keys(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """cu_seqlens_k and seqused_k of a lowered bias, where these are the keys."""
        return self._on(self.seqstart, device), None

    def _lengths_py(self) -> list[int]:
        """Host lengths, for what is decided without the device."""
        return [end - start for start, end in self.intervals()]


@dataclass(eq=False)
class _UsedSeqLenInfo(_SeqLenInfo):
    """Sequences with lengths of their own: sequence b is seqstart[b] + [0, seqlen[b])."""

    seqlen: torch.Tensor  # int32 [sequences]
    seqlen_py: Sequence[int]

    def intervals(self) -> Iterable[tuple[int, int]]:
        """(start, end) of the used part of every sequence, from the time of building."""
        return [(start, start + used) for start, used in zip(self.seqstart_py, self.seqlen_py, strict=False)]

    def to(self, device: Device) -> Self:
        moved = super().to(device)
        if moved is self and is_at(self.seqlen, device):
            return self
        return altered(moved, seqlen=self.seqlen.to(device), _device_given=True)

    def _keys(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._on(self.seqstart, device), self._on(self.seqlen, device)

    def _lengths_py(self) -> list[int]:
        return list(self.seqlen_py)


@dataclass(eq=False)
class _PaddedSeqLenInfo(_UsedSeqLenInfo):
    """Sequences in slots of `padding` positions, of which sequence b uses the first seqlen[b]."""

    padding: int
    # seqstart: 0, padding, ..., sequences * padding

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> Self:
        raise RuntimeError("attn_bias: from_seqlens lacks the padding.  Fix: use from_seqlens_padded.")

    @classmethod
    def from_seqlens_padded(cls, seqlens: Sequence[int], padding: int, *, device: Device = None) -> Self:
        seqlen_py, padding = to_ints(seqlens, "sequence length"), operator.index(padding)
        torch.ops.xformers._bias_check_padded(seqlen_py, padding)
        starts = [padding * i for i in range(len(seqlen_py) + 1)]
        seqlen = to_int32(seqlen_py, device)
        return cls._build(device, seqlen_py, starts, seqlen=seqlen, seqlen_py=seqlen_py, padding=padding)

    def with_padding(self, padding: int) -> Self:
        """The same lengths in other slots; the tensor of lengths is shared."""
        starts = [padding * i for i in range(len(self.seqlen_py) + 1)]
        return altered(self, padding=padding, seqstart=to_int32(starts, self.seqstart.device), seqstart_py=starts)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        raise NotImplementedError("attn_bias: padded sequences are not concatenated, so there is nothing to split.")


@dataclass(eq=False)
class _GappySeqInfo(_UsedSeqLenInfo):
    """Sequences anywhere: sequence b is seqstart[b] + [0, seqlen[b]). Ranges may overlap and leave gaps."""

    # seqstart: int32 [sequences + 1], the last one the total; paged: [sequences], counted in a sequence's own pages

    def __post_init__(self) -> None:
        has_total = len(self.seqstart_py) > len(self.seqlen_py)
        self._shares_keys = has_total and _share_keys(self.seqstart_py, self.seqlen_py)

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> Self:
        raise NotImplementedError("attn_bias: from_seqlens lacks the starts.  Fix: use from_seqlens_gappy.")

    @classmethod
    def from_seqlens_gappy(
        cls, seqstarts: Sequence[int], seqlens: Sequence[int], paged: bool, *, device: Device = None
    ) -> Self:
        seqlen_py, seqstart_py = to_ints(seqlens, "sequence length"), to_ints(seqstarts, "sequence start")
        torch.ops.xformers._bias_check_gappy(seqstart_py, seqlen_py, paged)
        return cls._build(device, seqlen_py, seqstart_py, seqlen=to_int32(seqlen_py, device), seqlen_py=seqlen_py)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        raise NotImplementedError("attn_bias: ranges that overlap or leave gaps cannot be split.")

    def _keys(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        starts, used = super()._keys(device)
        # Without the total: the operator's way to hear that sequences share keys.
        return (starts[:-1] if self._shares_keys else starts), used
