"""What all biases share: what they come down to, how it is shown, and the device that they are on.

Rules, texts and `materialize` are the library's (torch.ops.xformers._bias_*); the classes here are fields and
factories.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

__all__ = ["AttentionBias", "LoweredBias"]

Device = str | int | torch.device | None
Band = tuple[int, int, bool]  # window_left, window_right, bottom_right
T = TypeVar("T")

FULL: Band = (-1, -1, False)
CAUSAL: Band = (-1, 0, False)
CAUSAL_BOTTOM_RIGHT: Band = (-1, 0, True)


class LoweredBias(NamedTuple):
    """What every bias comes down to, all that operators and kernels know: scores x band x layout, as in C++.

    Query i and key j count from the start of their sequence of nq queries and nk keys; key j is visible iff
    ``d(i) - window_left <= j <= d(i) + window_right`` (-1 lifts a side), where d(i) is i, or i + nk - nq if
    `bottom_right`.
    """

    # [batch, (groups, heads,) seqlen_q, seqlen_k], added; bool: True attends; of sequences: as in `with_bias`
    scores: torch.Tensor | None = None
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    cu_seqlens_q: torch.Tensor | None = None  # int32 [sequences + 1]: packed queries
    cu_seqlens_k: torch.Tensor | None = None  # the same of keys, or with seqused_k where each sequence's keys start
    seqused_k: torch.Tensor | None = None  # int32 [sequences]: keys in use
    page_table: torch.Tensor | None = None  # int32 [sequences, pages]: keys are in pages
    page_size: int = 0
    # Visible blocks, int32 (BlockSparseMask): where the key blocks of every query block begin in the list behind it,
    # [batch or 1, heads or 1, query blocks + 1]; likewise the query blocks of every key block; which of `block_bits` an
    # entry of `block_keys` has, -1: none; int16 [blocks, block_q, block_k / 16], the lowest bit first.
    block_key_offsets: torch.Tensor | None = None
    block_keys: torch.Tensor | None = None
    block_query_offsets: torch.Tensor | None = None
    block_queries: torch.Tensor | None = None
    block_bits_of: torch.Tensor | None = None
    block_bits: torch.Tensor | None = None
    block_q: int = 0
    block_k: int = 0


class AttentionBias:
    """Base class of all biases. To define one, derive from it, or from a class of its layout, and write `lower`."""

    HOLDS_DENSE_TENSOR: ClassVar[bool] = False
    _TAKES_3D: ClassVar[bool] = False  # inputs [batch, seqlen, head_dim]
    _BAND: ClassVar[Band] = FULL

    def lower(self, device: torch.device) -> LoweredBias:
        """What is hidden and added, for inputs on `device`; called once per attention call. NotImplementedError for a
        class that does not say it."""
        raise NotImplementedError(
            f"attention: no operator knows what a bias of class {type(self).__name__} hides, expected None, a tensor, "
            "a class of xformers.ops.fmha.attn_bias, or one with a method `lower`.  Fix: derive it from one of these, "
            "or pass what it materializes."
        )

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        """The bias as a tensor of `shape` ([..., seqlen_q, seqlen_k]; packed: their totals): 0 where attended, or what
        is added, -inf elsewhere. Keys in pages are asked for as sequences * pages * page_size and shown as key has
        them, (largest page + 1) * page_size. For tests and for looking: waits for the device. ValueError for other
        totals."""
        lowered = self.lower(torch.device("cpu"))
        device = torch.device(device) if device is not None else torch.get_default_device()
        return torch.ops.xformers._bias_materialize(list(shape), dtype, device, *lowered, self._total_keys())

    def _total_keys(self) -> int | None:
        """The length of key, where the lowered bias does not say it."""
        return None


def altered(bias: T, **fields: Any) -> T:
    """A copy of the same type, subclasses included, with all fields kept but these."""
    result = copy.copy(bias)
    result.__dict__.update(fields)
    return result


def check_window(window_size: int) -> None:
    torch.ops.xformers._bias_check_window(window_size)


def default_device() -> torch.device:
    """Where biases are built when nothing else is said."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def is_at(tensor: torch.Tensor, device: Device) -> bool:
    """Whether the tensor is on the device; "cuda" means any CUDA device that is the current one."""
    device = torch.device(device) if device is not None else default_device()
    if device.index is None and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return tensor.device == device
