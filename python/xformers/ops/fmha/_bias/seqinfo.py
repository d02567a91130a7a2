"""Where sequences lie in a tensor that holds them all. Public by use: programs read and rewrite these fields.

Results follow the device tensors (`seqstart`, `seqlen`), which a decoding loop edits in place; `*_py`, `max_seqlen` and
`min_seqlen` are the numbers from the time of building.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import Device, altered, default_device, is_at


def to_ints(numbers: Iterable[int], what: str) -> list[int]:
    """Python ints, or a ValueError that says which is none or negative."""
    if isinstance(numbers, torch.Tensor):
        raise ValueError(f"attn_bias: the {what}s are a tensor, expected Python ints.  Fix: pass tensor.tolist().")
    result = [operator.index(number) for number in numbers]
    for number in result:
        if number < 0:
            raise ValueError(
                f"attn_bias: a {what} is {number}, expected 0 or more.  Fix: count from the first position."
            )
    return result


def to_int32(numbers: list[int], device: Device) -> torch.Tensor:
    """int32 on the device, without waiting for it."""
    device = default_device() if device is None else torch.device(device)
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int32, device=device)
    return torch.tensor(numbers, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)


def check_same_count(q_seqlen: Sequence[int], kv_seqlen: Sequence[int]) -> None:
    if len(kv_seqlen) != len(q_seqlen):
        raise ValueError(
            f"attn_bias: there are {len(q_seqlen)} query lengths and {len(kv_seqlen)} key lengths, expected as many of "
            "each.  Fix: give one pair of lengths per sequence; 0 is a length."
        )


@dataclass(eq=False)
class _SeqLenInfo:
    """Sequences that lie one after the other: sequence b is [seqstart[b], seqstart[b + 1])."""

    seqstart: torch.Tensor  # int32 [sequences + 1]
    max_seqlen: int
    min_seqlen: int
    seqstart_py: list[int]  # the same numbers on the host

    _device_given = False  # else the tensors follow the inputs to their device

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> "_SeqLenInfo":
        lengths = to_ints(seqlens, "sequence length")
        seqstart_py = [0]
        for seqlen in lengths:
            seqstart_py.append(seqstart_py[-1] + seqlen)
        return cls(
            seqstart=to_int32(seqstart_py, device),
            max_seqlen=max(lengths, default=-1),
            min_seqlen=min(lengths, default=-1),
            seqstart_py=seqstart_py,
        )._built_for(device)

    def intervals(self) -> Iterable[tuple[int, int]]:
        """(start, end) of every sequence."""
        return zip(self.seqstart_py, self.seqstart_py[1:], strict=False)

    def to(self, device: Device) -> Any:
        """The same on another device; itself if it is there already."""
        if is_at(self.seqstart, device):
            return self
        return altered(self, seqstart=self.seqstart.to(device), _device_given=True)

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

    def _built_for(self, device: Device) -> Any:
        if device is not None:
            self._device_given = True
        return self

    def _on(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One of its tensors, for inputs on `device`."""
        if tensor.device == device or self._device_given:  # the operator refuses a device that differs
            return tensor
        return tensor.to(device)

    def _lengths_py(self) -> list[int]:
        """Host lengths, for what is decided without the device."""
        return [end - start for start, end in self.intervals()]

    def _ranges(self) -> list[tuple[int, int]]:
        """(start, end) of every sequence as the device has them now; waits for it."""
        starts = self.seqstart_py if self.seqstart.is_meta else self.seqstart.tolist()
        return list(zip(starts, starts[1:], strict=False))


@dataclass(eq=False)
class _UsedSeqLenInfo(_SeqLenInfo):
    """Sequences with lengths of their own: sequence b is seqstart[b] + [0, seqlen[b])."""

    seqlen: torch.Tensor  # int32 [sequences]
    seqlen_py: Sequence[int]

    def intervals(self) -> Iterable[tuple[int, int]]:
        """(start, end) of the used part of every sequence."""
        return [(start, start + used) for start, used in zip(self.seqstart_py, self.seqlen_py, strict=False)]

    def to(self, device: Device) -> Any:
        moved = super().to(device)
        if moved is self and is_at(self.seqlen, device):
            return self
        return altered(moved, seqlen=self.seqlen.to(device), _device_given=True)

    def _lengths_py(self) -> list[int]:
        return list(self.seqlen_py)

    def _ranges(self) -> list[tuple[int, int]]:
        starts = self.seqstart_py if self.seqstart.is_meta else self.seqstart.tolist()
        lengths = self.seqlen_py if self.seqlen.is_meta else self.seqlen.tolist()
        return [(start, start + used) for start, used in zip(starts, lengths, strict=False)]


@dataclass(eq=False)
class _PaddedSeqLenInfo(_UsedSeqLenInfo):
    """Sequences in slots of `padding` positions, of which sequence b uses the first seqlen[b]."""

    padding: int
    # seqstart: 0, padding, ..., sequences * padding

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> "_SeqLenInfo":
        raise RuntimeError("attn_bias: from_seqlens lacks the padding.  Fix: use from_seqlens_padded.")

    @classmethod
    def from_seqlens_padded(cls, seqlens: Sequence[int], padding: int, *, device: Device = None) -> "_PaddedSeqLenInfo":
        seqlen_py = to_ints(seqlens, "sequence length")
        padding = operator.index(padding)
        if padding < 0 or any(seqlen > padding for seqlen in seqlen_py):
            raise ValueError(
                f"attn_bias: the longest sequence is {max(seqlen_py, default=0)}, expected at most the padding, "
                f"{padding}.  Fix: give longer slots."
            )
        seqstart_py = [padding * i for i in range(len(seqlen_py) + 1)]
        return cls(
            seqstart=to_int32(seqstart_py, device),
            max_seqlen=max(seqlen_py, default=-1),
            min_seqlen=min(seqlen_py, default=-1),
            seqstart_py=seqstart_py,
            seqlen=to_int32(seqlen_py, device),
            seqlen_py=seqlen_py,
            padding=padding,
        )._built_for(device)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        raise NotImplementedError("attn_bias: padded sequences are not concatenated, so there is nothing to split.")


@dataclass(eq=False)
class _GappySeqInfo(_UsedSeqLenInfo):
    """Sequences anywhere: sequence b is seqstart[b] + [0, seqlen[b]). Ranges may overlap and leave gaps."""

    # seqstart: int32 [sequences + 1], the last one the total; paged: [sequences], counted in a sequence's own pages

    def __post_init__(self) -> None:
        ranges = sorted((start, end) for start, end in self.intervals() if start < end)
        self._disjoint = all(end <= start for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False))

    @classmethod
    def from_seqlens(cls, seqlens: Iterable[int], *, device: Device = None) -> "_SeqLenInfo":
        raise NotImplementedError("attn_bias: from_seqlens lacks the starts.  Fix: use from_seqlens_gappy.")

    @classmethod
    def from_seqlens_gappy(
        cls, seqstarts: Sequence[int], seqlens: Sequence[int], paged: bool, *, device: Device = None
    ) -> "_GappySeqInfo":
        seqlen_py = to_ints(seqlens, "sequence length")
        seqstart_py = to_ints(seqstarts, "sequence start")
        if not seqlen_py:
            raise ValueError("attn_bias: there are no sequences, expected at least one.  Fix: give their lengths.")
        expected = len(seqlen_py) if paged else len(seqlen_py) + 1
        if len(seqstart_py) != expected:
            raise ValueError(
                f"attn_bias: there are {len(seqstart_py)} starts, expected {expected} for {len(seqlen_py)} sequences.  "
                f"Fix: give one start per sequence{'' if paged else ', and the total length of the keys last'}."
            )
        for start, length in zip(seqstart_py, seqlen_py, strict=False):
            if not paged and start + length > seqstart_py[-1]:
                raise ValueError(
                    f"attn_bias: a sequence of keys is [{start}, {start + length}), expected a range inside "
                    f"[0, {seqstart_py[-1]}).  Fix: the last start is the total length of the keys."
                )
        return cls(
            seqstart=to_int32(seqstart_py, device),
            max_seqlen=max(seqlen_py),
            min_seqlen=min(seqlen_py),
            seqstart_py=seqstart_py,
            seqlen=to_int32(seqlen_py, device),
            seqlen_py=seqlen_py,
        )._built_for(device)

    def split(self, x: torch.Tensor, batch_sizes: Sequence[int] | None = None) -> list[torch.Tensor]:
        raise NotImplementedError("attn_bias: ranges that overlap or leave gaps cannot be split.")
