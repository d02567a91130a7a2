"""The gated feed-forward layer SwiGLU: out = (silu(x w1^T + b1) * (x w2^T + b2)) w3^T + b3.

From "GLU Variants Improve Transformer" (Shazeer, arXiv:2002.05202).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .common import BaseOperator, get_xformers_operator, register_operator
from .unbind import stack_or_none, unbind

_Tensor = torch.Tensor
_Optional = torch.Tensor | None


@register_operator
class DualGemmSiluOp(BaseOperator):
    OPERATOR = get_xformers_operator("dual_gemm_silu_identity_mul")
    OPERATOR_CATEGORY = "swiglu"
    NAME = "dual_gemm_silu"


@register_operator
class GemmFusedSumOp(BaseOperator):
    OPERATOR = get_xformers_operator("gemm_fused_operand_sum")
    OPERATOR_CATEGORY = "swiglu"
    NAME = "gemm_fused_operand_sum"


@dataclass
class SwiGLUOpDispatch:
    """What an operator is chosen by."""

    device: torch.device | str
    dtype: torch.dtype
    dtype_autocast_gpu: torch.dtype | None  # what autocast computes in, else the dtype of the weights
    packed_weights: bool
    bias_enabled: bool

    @property
    def op(self) -> "SwiGLUOp":
        """The first that supports it: packed, fused, eager."""
        return next((op for op in (SwiGLUPackedFusedOp, SwiGLUFusedOp) if op.supports(self)), SwiGLUEagerOp)

    @staticmethod
    def from_arguments(
        x: _Tensor, w1: _Tensor, b1: _Optional, w2: _Tensor, b2: _Optional, w3: _Tensor, b3: _Optional
    ) -> "SwiGLUOpDispatch":
        """What the arguments of `swiglu` are, under the autocast that is in force."""
        return SwiGLUOpDispatch(
            device=x.device,
            dtype=x.dtype,
            dtype_autocast_gpu=_autocast_dtype(x.device) or w1.dtype,
            packed_weights=stack_or_none((w1, w2), 0) is not None,
            bias_enabled=b1 is not None and b2 is not None and b3 is not None,
        )


class SwiGLUOp:
    """One way to compute the layer. Takes (x, w1, b1, w2, b2, w3, b3), a packed one (x, w1w2, b1b2, w3, b3)."""

    def __init__(
        self,
        op: Callable[..., _Tensor],
        packed_weights: bool,
        name: str,
        constraint: Callable[[SwiGLUOpDispatch], bool],
    ):
        self.NAME = name
        self.PACKED_WEIGHTS = packed_weights
        self.op = op
        self.constraint = constraint

    def supports(self, op: SwiGLUOpDispatch) -> bool:
        """Whether it takes tensors of this kind."""
        if self.PACKED_WEIGHTS and not op.packed_weights:
            return False
        return self.constraint(op)

    def __call__(self, *args: _Optional) -> _Tensor:
        return self.op(*args)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Those of this module pickle by their names."""
        name = next((name for name, op in globals().items() if op is self), None)
        return name or (SwiGLUOp, (self.op, self.PACKED_WEIGHTS, self.NAME, self.constraint))

    def __str__(self) -> str:
        return f"SwiGLUOp:{self.NAME}"

    __repr__ = __str__


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device, None where it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else None


def _fused_supports(op: SwiGLUOpDispatch) -> bool:
    """The library's rule: one dtype for all, or autocast; on a GPU the dtypes of its tensor cores."""
    if op.dtype_autocast_gpu is None:
        return False
    device = torch.device(op.device)
    return torch.ops.xformers.swiglu_fused_takes(device, op.dtype, op.dtype_autocast_gpu)


# Ways to compute the layer, for `op`: from weights stacked in one tensor, from separate ones, by PyTorch's operators.
SwiGLUPackedFusedOp = SwiGLUOp(torch.ops.xformers.swiglu_packedw, True, "fused.p.cpp", _fused_supports)
SwiGLUFusedOp = SwiGLUOp(torch.ops.xformers.swiglu_fused, False, "fused", _fused_supports)
SwiGLUEagerOp = SwiGLUOp(torch.ops.xformers.swiglu_eager, False, "eager", lambda _: True)


def swiglu(
    x: _Tensor,
    w1: _Tensor,
    b1: _Optional,
    w2: _Tensor,
    b2: _Optional,
    w3: _Tensor,
    b3: _Optional,
    *,
    op: SwiGLUOp | None = None,
) -> _Tensor:
    """`(silu(x w1^T + b1) * (x w2^T + b2)) w3^T + b3`.

    x: [..., in]; w1, w2: [hidden, in]; w3: [out, hidden]; biases or None. op: None chooses. A packed op needs w1 and w2
    (and b1 and b2) to lie in memory as `unbind` of one stacked tensor does: NotImplementedError where they don't,
    AssertionError where one of b1 and b2 is None. ValueError where shapes, dtypes or devices don't fit.
    """
    if op is None:
        return torch.ops.xformers.swiglu(x, w1, b1, w2, b2, w3, b3)
    torch.ops.xformers.swiglu_check(x, w1, b1, w2, b2, w3, b3)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    if not op.PACKED_WEIGHTS:
        out = op(rows, w1, b1, w2, b2, w3, b3)
    else:
        if (b1 is None) != (b2 is None):
            raise AssertionError("swiglu: one of b1 and b2 is None, expected both or neither.  Fix: give both biases.")
        w1w2 = stack_or_none((w1, w2), 0)
        b1b2 = None if b1 is None or b2 is None else stack_or_none((b1, b2), 0)
        if w1w2 is None or (b1 is not None and b1b2 is None):
            raise NotImplementedError(
                f"swiglu: {op} needs w1 and w2 (and b1 and b2) stacked in memory, and they are not.  Fix: keep them as "
                "one [2, hidden, in] tensor and pass its unbind(0), or choose another op."
            )
        out = op(rows, w1w2, b1b2, w3, b3)
    return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])


def _check_packed(op: SwiGLUOp) -> None:
    if not op.PACKED_WEIGHTS:
        raise AssertionError(
            f"swiglu: op is {op}, expected one with PACKED_WEIGHTS.  Fix: leave op out, or pass SwiGLUPackedFusedOp."
        )


def swiglu_packed(x: _Tensor, w1w2: _Tensor, b1b2: _Optional, w3: _Tensor, b3: _Optional, *, op: SwiGLUOp) -> _Tensor:
    """swiglu with w1w2: [2, hidden, in] and b1b2: [2, hidden] or None. op: a packed one, else AssertionError."""
    _check_packed(op)
    return op(x, w1w2, b1b2, w3, b3)


class SwiGLU(nn.Module):
    """The layer with its parameters: `w12` (w1's rows, then w2's) and `w3`, or, unpacked, `w1`, `w2` and `w3`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = True,
        *,
        _pack_weights: bool = True,
    ):
        super().__init__()
        out_features = out_features or in_features
        self.w12: nn.Linear | None
        if _pack_weights:
            self.w12 = nn.Linear(in_features, 2 * hidden_features, bias=bias)
        else:
            self.w12 = None
            self.w1 = nn.Linear(in_features, hidden_features, bias=bias)
            self.w2 = nn.Linear(in_features, hidden_features, bias=bias)
        self.w3 = nn.Linear(hidden_features, out_features, bias=bias)
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.in_features = in_features
        self.op: SwiGLUOp | None = None

    def forward(self, x: _Tensor) -> _Tensor:
        if self.w12 is None:
            return swiglu(x, *self._ordered_params(), op=self.op)
        if self.op is None:
            return torch.ops.xformers.swiglu_packed(x, *self._packed_ordered_params())
        return swiglu_packed(x, *self._packed_ordered_params(), op=self.op)

    def _ordered_params(self) -> tuple[_Tensor, _Optional, _Tensor, _Optional, _Tensor, _Optional]:
        """(w1, b1, w2, b2, w3, b3); views of w12 where packed."""
        if self.w12 is None:
            return (self.w1.weight, self.w1.bias, self.w2.weight, self.w2.bias, self.w3.weight, self.w3.bias)
        w1w2, b1b2, w3, b3 = self._packed_ordered_params()
        w1, w2 = unbind(w1w2, 0)
        b1, b2 = unbind(b1b2, 0) if b1b2 is not None else (None, None)
        return (w1, b1, w2, b2, w3, b3)

    def _packed_ordered_params(self) -> tuple[_Tensor, _Optional, _Tensor, _Optional]:
        """(w1w2: [2, hidden, in], b1b2: [2, hidden] or None, w3, b3)."""
        if self.w12 is None:
            raise AssertionError(
                "SwiGLU: w12 is None, expected packed parameters.  Fix: build the module with _pack_weights=True."
            )
        w1w2 = self.w12.weight.view(2, self.hidden_features, self.in_features)
        b1b2 = self.w12.bias.view(2, self.hidden_features) if self.w12.bias is not None else None
        return (w1w2, b1b2, self.w3.weight, self.w3.bias)


__all__ = [
    "SwiGLU",
    "SwiGLUEagerOp",
    "SwiGLUFusedOp",
    "SwiGLUOp",
    "SwiGLUOpDispatch",
    "SwiGLUPackedFusedOp",
    "swiglu",
    "swiglu_packed",
]
