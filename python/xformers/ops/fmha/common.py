"""What an attention operator is: a class that states a contract, which the library keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from ..common import BaseOperator
from . import attn_bias
from ._inputs import Context, Gradients, Inputs

OPERATORS_BY_KEY: dict[str, Any] = {}  # of their contracts


def _bias_type(name: str) -> type:
    types: dict[str, type] = {"None": type(None), "Tensor": torch.Tensor}
    return types[name] if name in types else getattr(attn_bias, name)


def _by_dtype(by_name: dict[str, float]) -> dict[torch.dtype, float]:
    return {getattr(torch, name): value for name, value in by_name.items()}


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "SUPPORTED_DEVICES": set,
    "CUDA_MINIMUM_COMPUTE_CAPABILITY": tuple,
    "SUPPORTED_DTYPES": lambda names: {getattr(torch, name) for name in names},
    "SUPPORTED_ATTN_BIAS_TYPES": lambda names: tuple(_bias_type(name) for name in names),
    "ERROR_ATOL": _by_dtype,
    "ERROR_RTOL": _by_dtype,
}
_PRIVATE = {"KEY": "_KEY", "LSE_FLOAT64": "_LSE_FLOAT64"}
_NOT_ATTRIBUTES = {"MODULE", "BACKWARD", "LSE_PAD_TO", "AVAILABLE", "NOT_BUILT"}


def _attributes(key: str) -> dict[str, Any]:
    """A contract as class attributes."""
    contract = json.loads(torch.ops.xformers.attention_contract(key))
    attributes = {
        _PRIVATE.get(name, name): _CONVERT.get(name, lambda x: x)(value)
        for name, value in contract.items()
        if name not in _NOT_ATTRIBUTES
    }
    padded = "cutlass" if contract["LSE_PAD_TO"] > 1 else "padded"
    attributes["_LSE_FORMAT"] = "packed" if contract["VARLEN_LSE_PACKED"] else padded
    return attributes


class AttentionOpBase(BaseOperator):
    """One direction of attention under a name that users select: a contract of what it takes and returns.

    Its attributes come from the library's table of contracts, and so do its reasons to refuse an input."""

    OPERATOR: Any = None
    OPERATOR_CATEGORY: str = "memory_efficient_attention"
    NAME: str
    SUPPORTED_DEVICES: set[str]
    CUDA_MINIMUM_COMPUTE_CAPABILITY: tuple[int, int] = (5, 0)
    SUPPORTED_DTYPES: set[torch.dtype]
    SUPPORTED_MAX_K: float
    SUPPORTED_MIN_K: int = 0
    SUPPORTED_ATTN_BIAS_TYPES: Iterable[Any] = (type(None),)
    SUPPORTS_DROPOUT: bool
    SUPPORTS_CUSTOM_SCALE: bool = False
    SUPPORTS_DIFFERENT_VALUE_EMBED: bool = False
    SUPPORTS_OUTPUT_DTYPE: bool = False
    SUPPORTS_PARTIAL: bool = False
    SUPPORTS_BMGHK: bool = False
    SUPPORTS_ATTN_BIAS_GRAD: bool = False
    IS_DETERMINISTIC: bool = True
    VARLEN_LSE_PACKED: bool = True
    ERROR_ATOL: dict[torch.dtype, float] = {torch.float: 3e-4, torch.half: 4e-3, torch.bfloat16: 2e-2}
    ERROR_RTOL: dict[torch.dtype, float] = {torch.float: 2e-5, torch.half: 4e-4, torch.bfloat16: 5e-3}
    _TEST_BATCH_SIZES: list[int] = [1, 300]
    _TEST_K: list[int] = [32, 128]

    _KEY: ClassVar[str] = ""  # of the contract
    _LSE_FORMAT: ClassVar[str] = "packed"
    _LSE_FLOAT64: ClassVar[bool] = False

    def __init_subclass__(cls, contract: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if contract:
            OPERATORS_BY_KEY[contract] = cls
            for name, value in _attributes(contract).items():
                setattr(cls, name, value)

    @classmethod
    def supports(cls, d: Inputs) -> bool:
        """Whether this operator takes the input."""
        return not cls.not_supported_reasons(d)

    @classmethod
    def shape_not_supported_reasons(cls, Mq: int, Mkv: int, K: int, Kv: int) -> list[str]:
        """The reasons that lengths of queries and keys, head_dim and head_dim_v give."""
        return torch.ops.xformers.attention_shape_not_supported_reasons(cls._KEY, Mq, Mkv, K, Kv)

    @classmethod
    def not_supported_reasons(cls, d: Inputs) -> list[str]:
        """Every reason for which this operator does not take the input; none: it does."""
        tensors, options = d._request(cls)
        return torch.ops.xformers.attention_not_supported_reasons(cls._KEY, *tensors, **options)


class AttentionFwOpBase(AttentionOpBase):
    """A forward."""

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        """Runs it, unchecked; the context only with `needs_gradient`."""
        raise NotImplementedError(f"{cls.NAME} has no forward")

    @classmethod
    def run(cls, inp: Inputs, need_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(out, lse), unchecked; ours also record gradients."""
        out, context = cls.apply(inp, need_lse)
        return out, context.lse if context is not None else None


class AttentionBwOpBase(AttentionOpBase):
    """A backward."""

    SUPPORTS_PARTIAL = True
    ERROR_ATOL = {torch.float: 9e-4, torch.half: 0.2, torch.bfloat16: 0.9}
    ERROR_RTOL = {torch.float: 1e-4, torch.half: 2e-2, torch.bfloat16: 0.1}

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        """Runs it, unchecked."""
        raise NotImplementedError(f"{cls.NAME} has no backward")


# What `op` of attention is: a forward and a backward operator class; None: chosen by the inputs.
AttentionOp = tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]


def bmk2bmhk(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[batch * heads, seqlen, head_dim] -> [batch, seqlen, heads, head_dim], without a copy."""
    if tensor.ndim == 4:
        return tensor
    return torch.unflatten(tensor, 0, (tensor.shape[0] // num_heads, num_heads)).transpose(1, 2)


def check_lastdim_alignment_stride1(reasons: list[str], name: str, x: torch.Tensor, alignment: int) -> None:
    """Appends what is wrong with the last dimension of x for a kernel that reads `alignment` elements at once."""
    if x.shape[-1] % alignment != 0:
        reasons.append(f"{name}.shape[-1] is {x.shape[-1]}, expected a multiple of {alignment}")
    elif x.stride(-2) % alignment != 0:
        reasons.append(f"{name}.stride(-2) is {x.stride(-2)}, expected a multiple of {alignment}")
    if x.stride(-1) > 1:
        reasons.append(f"{name}.stride(-1) is {x.stride(-1)}, expected 1: call {name}.contiguous()")


__all__ = [
    "AttentionBwOpBase",
    "AttentionFwOpBase",
    "AttentionOp",
    "AttentionOpBase",
    "Context",
    "Gradients",
    "Inputs",
    "bmk2bmhk",
    "check_lastdim_alignment_stride1",
]
