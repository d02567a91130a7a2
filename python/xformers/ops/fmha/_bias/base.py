"""What all biases share: a band (who sees whom) and how they reach the operator.

With query i and key j counted from the start of their sequence of nq queries and nk keys, and the diagonal d(i) = i
(top-left) or i + nk - nq (bottom-right), key j is visible iff ``d(i) - window_left <= j <= d(i) + window_right``; -1
lifts a side.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

Device = str | int | torch.device | None
Band = tuple[int, int, bool]  # window_left, window_right, bottom_right

FULL: Band = (-1, -1, False)
CAUSAL: Band = (-1, 0, False)
CAUSAL_BOTTOM_RIGHT: Band = (-1, 0, True)


class AttentionBias:
    """Base class of all biases."""

    HOLDS_DENSE_TENSOR: ClassVar[bool] = False
    _TAKES_3D: ClassVar[bool] = False  # inputs [batch, seqlen, head_dim]
    _BAND: ClassVar[Band] = FULL

    def _operands(self, device: torch.device) -> tuple[Any, ...]:
        """Arguments of the operator after query, key and value, as far as they are not the defaults."""
        raise NotImplementedError(
            f"attention: no operator knows what a bias of class {type(self).__name__} hides, expected None, a tensor "
            "or a class of xformers.ops.fmha.attn_bias.  Fix: derive it from one of these, or pass what it "
            "materializes."
        )

    def _paging(self, device: torch.device) -> dict[str, Any]:
        """Further arguments, by name: page_table and page_size."""
        return {}

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = "cpu"
    ) -> torch.Tensor:
        """The bias as a tensor of `shape` ([..., seqlen_q, seqlen_k]): 0 where attended, -inf elsewhere. For tests."""
        raise NotImplementedError(f"{type(self).__name__} has no materialize")


def altered(bias: Any, **fields: Any) -> Any:
    """A copy of the same type, subclasses included, with all fields kept but these."""
    result = copy.copy(bias)
    result.__dict__.update(fields)
    return result


def materialize_band(nq: int, nk: int, band: Band, dtype: torch.dtype, device: Device) -> torch.Tensor:
    """[nq, nk]: 0 where visible, -inf elsewhere."""
    left, right, bottom_right = band
    diagonal = torch.arange(nq, device=device)[:, None] + (nk - nq if bottom_right else 0)
    key = torch.arange(nk, device=device)[None, :]
    hidden = torch.zeros(nq, nk, dtype=torch.bool, device=device)
    if left >= 0:
        hidden |= key < diagonal - left
    if right >= 0:
        hidden |= key > diagonal + right
    return torch.zeros(nq, nk, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def check_window(window_size: int) -> None:
    if window_size <= 0:
        raise ValueError(
            f"attn_bias: the window size is {window_size}, expected 1 or more.  Fix: 1 sees the diagonal alone."
        )


def default_device() -> torch.device:
    """Where biases are built when nothing else is said."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def is_at(tensor: torch.Tensor, device: Device) -> bool:
    """Whether the tensor is on the device; "cuda" means any CUDA device that is the current one."""
    device = torch.device(device) if device is not None else default_device()
    if device.index is None and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return tensor.device == device
