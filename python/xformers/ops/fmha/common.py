"""What an attention call is (`Inputs`), what passes from forward to backward (`Context`), and what an operator is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..common import BaseOperator
from . import _contract
from ._lower import Bias, lower


@dataclass(eq=False)
class Inputs:
    """The arguments of one attention call; tensors 3-D, 4-D or 5-D as in `memory_efficient_attention`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_bias: Bias = None
    p: float = 0.0
    scale: float | None = None
    output_dtype: torch.dtype | None = None
    is_partial: bool = False

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def scale_float(self) -> float:
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def nbytes(self) -> int:
        """Bytes that query, key and value take in memory."""
        return sum(x.untyped_storage().nbytes() for x in self._tensors())

    def get_qkv_in_bmghk(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """query, key and value as [batch, seqlen, groups, heads, head_dim]."""
        missing = 5 - self.query.ndim
        if missing not in (0, 1, 2):
            raise ValueError(_wrong_ndim(self.query))
        q, k, v = (x[(slice(None), slice(None), *[None] * missing)] for x in (self.query, self.key, self.value))
        return q, k, v

    def normalize_bmhk(self) -> tuple[int, ...]:
        """Gives 3-D tensors, and their bias, a dimension of one head; returns the shape of the output as it was."""
        if self.query.ndim not in (3, 4, 5):
            raise ValueError(_wrong_ndim(self.query))
        shape = (
            *self.query.shape[:-1],
            self.query.shape[-1] if self.value.dtype == torch.int32 else self.value.shape[-1],
        )
        if self.query.ndim == 3:
            self.query, self.key, self.value = (x.unsqueeze(2) for x in (self.query, self.key, self.value))
            if isinstance(self.attn_bias, torch.Tensor) and self.attn_bias.ndim != 0:
                self.attn_bias = self.attn_bias.unsqueeze(1)
        return shape

    def validate_inputs(self) -> None:
        """Raises a ValueError where shapes, dtypes, devices and bias contradict each other."""
        operands, options = lower(self.query, self.attn_bias)
        torch.ops.xformers.attention_check_inputs(
            self.query, self.key, self.value, *operands, p=self.p, **options, **self._quantization()
        )

    def get_output_dtype(self) -> torch.dtype:
        """The dtype of the output where an operator may choose it: partial results are fp32 or wider."""
        if self.output_dtype is not None:
            return self.output_dtype
        if self.is_partial and self.query.dtype != torch.float64:
            return torch.float32
        return self.query.dtype

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.query, self.key, self.value)

    def _quantization(self) -> dict[str, torch.Tensor]:
        """Arguments of the operator that say how integer keys and values are read."""
        return {}


@dataclass(eq=False)
class Context:
    """What a backward needs of its forward. lse may be in the format of any operator, and longer than needed; lse_low
    is what rounding to lse has lost, as the library's forward returns it."""

    lse: torch.Tensor
    out: torch.Tensor
    op_bw: type[AttentionBwOpBase] | None = None
    rng_state: Any = None
    qkv_share_storage: bool = False
    lse_low: torch.Tensor | None = None

    def get_padded_lse(self, pad_to: int, force_pad_inf: bool = False) -> torch.Tensor:
        """lse with its last dimension a multiple of `pad_to`; what is added is +inf, and with `force_pad_inf` all that
        is not of a query."""
        last = self.lse.shape[-1]
        missing = math.ceil(last / pad_to) * pad_to - last if pad_to > 0 else 0
        queries = self.out.shape[1]
        if force_pad_inf and last > queries:
            padded = self.lse[..., :queries]
            return torch.nn.functional.pad(padded, (0, last + missing - queries), value=math.inf)
        return torch.nn.functional.pad(self.lse, (0, missing), value=math.inf) if missing else self.lse


@dataclass(eq=False)
class Gradients:
    """Gradients of query, key, value, and of a tensor bias that requires one."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor
    db: torch.Tensor | None = None


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
        for name, value in _contract.load(contract).items() if contract else ():
            setattr(cls, name, value)

    @classmethod
    def supports(cls, d: Inputs) -> bool:
        return not cls.not_supported_reasons(d)

    @classmethod
    def shape_not_supported_reasons(cls, Mq: int, Mkv: int, K: int, Kv: int) -> list[str]:
        return torch.ops.xformers.attention_shape_not_supported_reasons(cls._KEY, Mq, Mkv, K, Kv)

    @classmethod
    def not_supported_reasons(cls, d: Inputs) -> list[str]:
        """Every reason for which this operator does not take the input; none: it does."""
        tensors, options = _contract.arguments(d, cls)
        return torch.ops.xformers.attention_not_supported_reasons(cls._KEY, *tensors, **options)


class AttentionFwOpBase(AttentionOpBase):
    """A forward."""

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        """Runs it, unchecked; the context only with `needs_gradient`."""
        raise NotImplementedError(f"{cls.NAME} has no forward")

    @classmethod
    def run(cls, inp: Inputs, need_lse: bool) -> tuple[torch.Tensor, Any, Any]:
        """(out, lse, random state), unchecked; ours also record gradients."""
        out, context = cls.apply(inp, need_lse)
        return out, *((context.lse, context.rng_state) if context is not None else (None, None))


class AttentionBwOpBase(AttentionOpBase):
    """A backward."""

    SUPPORTS_PARTIAL = True
    ERROR_ATOL = {torch.float: 9e-4, torch.half: 0.2, torch.bfloat16: 0.9}
    ERROR_RTOL = {torch.float: 1e-4, torch.half: 2e-2, torch.bfloat16: 0.1}

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        """Runs it, unchecked."""
        raise NotImplementedError(f"{cls.NAME} has no backward")


AttentionOp = tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]


def bmk2bmhk(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[batch * heads, seqlen, head_dim] -> [batch, seqlen, heads, head_dim], without a copy."""
    if tensor.ndim == 4:
        return tensor
    return tensor.unflatten(0, (tensor.shape[0] // num_heads, num_heads)).transpose(1, 2)


def check_lastdim_alignment_stride1(reasons: list[str], name: str, x: torch.Tensor, alignment: int) -> None:
    """Appends what is wrong with the last dimension of x for a kernel that reads `alignment` elements at once."""
    if x.shape[-1] % alignment != 0:
        reasons.append(f"{name}.shape[-1] is {x.shape[-1]}, expected a multiple of {alignment}")
    elif x.stride(-2) % alignment != 0:
        reasons.append(f"{name}.stride(-2) is {x.stride(-2)}, expected a multiple of {alignment}")
    if x.stride(-1) > 1:
        reasons.append(f"{name}.stride(-1) is {x.stride(-1)}, expected 1: call {name}.contiguous()")


def _wrong_ndim(query: torch.Tensor) -> str:
    return (
        f"attention: query.ndim is {query.ndim} (shape {list(query.shape)}), expected 3, 4 or 5.  Fix: use "
        "[batch, seqlen, heads, head_dim], [batch, seqlen, head_dim] or [batch, seqlen, groups, heads, head_dim]."
    )
