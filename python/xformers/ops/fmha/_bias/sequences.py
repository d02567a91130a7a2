"""What biases over several sequences have in common: every query sees keys of its own sequence only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from .base import AttentionBias, Device, LoweredBias, altered
from .seqinfo import _SeqLenInfo

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(eq=False)
class SequencesBias(AttentionBias):
    """Inputs of batch 1 hold all sequences: queries one after the other, keys where `k_seqinfo` says."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: Any
    _scores: torch.Tensor | None = field(default=None, kw_only=True)  # what with_bias adds

    def with_bias(self, bias: torch.Tensor) -> Self:
        """The same, and `bias` added to the scores, at the place of query and key inside each sequence:
        ``[sequences or 1, (groups or 1,) heads or 1, longest queries or more, longest keys or more]`` in the query's
        dtype, or of booleans, True where a query attends. Gradients flow to it. What it had before is replaced.
        ValueError where it has no place for the longest sequence."""
        q, k = self.q_seqinfo, self.k_seqinfo
        torch.ops.xformers._bias_check_scores(bias, len(q.seqstart_py) - 1, q.max_seqlen, k.max_seqlen)
        if torch.compiler.is_dynamo_compiling():  # which knows no copy.copy
            return replace(self, _scores=bias)
        return altered(self, _scores=bias)

    def to(self, device: Device) -> Self:
        """The same bias, type and fields included, on another device."""
        q_seqinfo = self.q_seqinfo.to(device)
        k_seqinfo = q_seqinfo if self.k_seqinfo is self.q_seqinfo else self.k_seqinfo.to(device)
        scores = None if self._scores is None else self._scores.to(device)
        return altered(self, q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo, _scores=scores)

    def lower(self, device: torch.device) -> LoweredBias:
        q = self.q_seqinfo
        return LoweredBias(self._scores, *self._BAND, q._on(q.seqstart, device), *self.k_seqinfo._keys(device))


def make_paged(bias: Any, paged_type: type, block_tables: torch.Tensor, page_size: int, k_seqinfo: Any) -> Any:
    """`paged_type` for an unpaged bias, whose pattern it must keep."""
    unpaged = getattr(paged_type, "_UNPAGED_TYPE", None)
    if unpaged is None or not isinstance(bias, unpaged) or bias._BAND != unpaged._BAND:
        raise ValueError(
            f"attn_bias: paged_type is {getattr(paged_type, '__name__', paged_type)}, expected the paged form of "
            f"{type(bias).__name__}.  Fix: a type whose _UNPAGED_TYPE masks as this bias does."
        )
    scores = {} if bias._scores is None else {"_scores": bias._scores}
    table = {"block_tables": block_tables, "page_size": page_size}
    return paged_type(q_seqinfo=bias.q_seqinfo, k_seqinfo=k_seqinfo, **table, **scores)
