"""What biases over several sequences have in common: every query sees keys of its own sequence only."""

from collections.abc import Sequence
from typing import Any

import torch

from .base import AttentionBias, Device, altered, materialize_band
from .seqinfo import _SeqLenInfo


class SequencesBias(AttentionBias):
    """Inputs of batch 1 hold all sequences: queries one after the other, keys where `k_seqinfo` says."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: Any

    def to(self, device: Device) -> Any:
        """The same bias, type and fields included, on another device."""
        q_seqinfo = self.q_seqinfo.to(device)
        k_seqinfo = q_seqinfo if self.k_seqinfo is self.q_seqinfo else self.k_seqinfo.to(device)
        return altered(self, q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        q, k = self.q_seqinfo, self.k_seqinfo
        return (None, *self._BAND, q._on(q.seqstart, device), k._on(k.seqstart, device))

    def _blocks(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """((first query, end), (first key, end)) per sequence, as the device has them now."""
        return list(zip(self.q_seqinfo._ranges(), self.k_seqinfo._ranges(), strict=False))

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        check_totals(shape, self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1])
        mask = torch.full(tuple(shape[-2:]), -torch.inf, dtype=dtype, device=device)
        for (q0, q1), (k0, k1) in self._blocks():
            mask[q0:q1, k0:k1] = materialize_band(q1 - q0, k1 - k0, self._BAND, dtype, device)
        return mask.expand(*shape)


def check_totals(shape: Sequence[int], queries: int, keys: int) -> None:
    if list(shape[-2:]) != [queries, keys]:
        raise ValueError(
            f"attn_bias: the shape to materialize is {list(shape)}, expected [..., {queries}, {keys}].  "
            "Fix: use the total lengths of queries and keys."
        )
