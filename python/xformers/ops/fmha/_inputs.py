"""What an attention call is (`Inputs`), what passes from forward to backward (`Context`), and what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ._lower import Bias, bias_name, dense_of, lower, modifiers, query_lengths
from .attn_bias import VARLEN_BIASES

if TYPE_CHECKING:
    from .common import AttentionBwOpBase, AttentionOpBase


@dataclass(eq=False)
class Inputs:
    """The arguments of one attention call; tensors 3-D, 4-D or 5-D as in `memory_efficient_attention`. `softcap`,
    `alibi_slopes` and `sinks` by name only."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_bias: Bias = None
    p: float = 0.0
    scale: float | None = None
    output_dtype: torch.dtype | None = None
    is_partial: bool = False
    softcap: float = field(default=0.0, kw_only=True)
    alibi_slopes: torch.Tensor | None = field(default=None, kw_only=True)
    sinks: torch.Tensor | None = field(default=None, kw_only=True)

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
        """query, key and value as [batch, seqlen, groups, heads, head_dim]; ValueError unless 3-D, 4-D or 5-D."""
        missing = 5 - self.query.ndim
        if missing not in (0, 1, 2):
            raise ValueError(_wrong_ndim(self.query))
        q, k, v = (x[(slice(None), slice(None), *[None] * missing)] for x in self._tensors())
        return q, k, v

    def normalize_bmhk(self) -> tuple[int, ...]:
        """Gives 3-D tensors, and their bias, a dimension of one head; returns the shape of the output as it was.
        ValueError unless 3-D, 4-D or 5-D."""
        if self.query.ndim not in (3, 4, 5):
            raise ValueError(_wrong_ndim(self.query))
        last = self.query.shape[-1] if self.value.dtype == torch.int32 else self.value.shape[-1]
        shape = (*self.query.shape[:-1], last)
        if self.query.ndim == 3:
            self.query, self.key, self.value = (x.unsqueeze(2) for x in self._tensors())
            if isinstance(self.attn_bias, torch.Tensor) and self.attn_bias.ndim != 0:
                self.attn_bias = self.attn_bias.unsqueeze(1)
        return shape

    def validate_inputs(self) -> None:
        """Raises a ValueError where shapes, dtypes, devices and bias contradict each other."""
        operands, options = lower(self.query, self.attn_bias)
        torch.ops.xformers.attention_check_inputs(
            self.query,
            self.key,
            self.value,
            *operands,
            p=self.p,
            **options,
            **self._quantization(),
            **self._modifiers(),
        )

    def get_output_dtype(self) -> torch.dtype:
        """The dtype of the output where an operator may choose it: partial results are fp32 or wider."""
        if self.output_dtype is not None:
            return self.output_dtype
        if self.is_partial and self.query.dtype != torch.float64:
            return torch.float32
        return self.query.dtype

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (self.query, self.key, self.value)

    def _quantization(self) -> dict[str, torch.Tensor]:
        """Arguments of the operator that say how integer keys and values are read."""
        return {}

    def _modifiers(self) -> dict[str, Any]:
        """Arguments of the operator that say what is done to scores."""
        return modifiers(self.softcap, self.alibi_slopes, self.sinks)

    def _needs_gradient(self) -> bool:
        added = (dense_of(self.query, self.attn_bias), self.alibi_slopes, self.sinks)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*self._tensors(), *added))

    def _request(self, op: type[AttentionOpBase] | None = None) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(query, key, value) in at least 4 dimensions, and the rest of what contracts are asked about."""
        tensors, bias, dense = self._tensors(), self.attn_bias, dense_of(self.query, self.attn_bias)
        if self.query.ndim == 3:
            tensors = tuple(x.unsqueeze(2) for x in tensors)  # type: ignore[assignment]
            dense = dense.unsqueeze(1) if dense is not None and dense.ndim else dense
        options: dict[str, Any] = {
            "bias_type": bias_name(bias),
            "dense_bias": dense,
            "p": self.p,
            "scale_given": self.scale is not None,
            "output_dtype": self.output_dtype,
            "is_partial": self.is_partial,
            "bias_requires_grad": dense is not None and dense.requires_grad,
            "fp8": bool(self._quantization()),
        }
        if self.softcap != 0.0:
            options["softcap"] = self.softcap
        if self.alibi_slopes is not None:
            options.update(alibi_slopes=True, slopes_require_grad=self.alibi_slopes.requires_grad)
        if self.sinks is not None:
            options["sinks"] = True
        if isinstance(bias, VARLEN_BIASES):
            options["seqlens_q"] = query_lengths(bias)
            options["seqlens_k"] = bias.k_seqinfo._lengths_py()
            options["page_size"] = getattr(bias, "page_size", 0)
        if self.query.is_cuda:
            options["cuda_capability"] = list(torch.cuda.get_device_capability(self.query.device))
        for name, attribute in (("num_groups", "NUM_GROUPS"), ("split_k", "SPLIT_K"), ("block_n", "BLOCK_N")):
            if getattr(op, attribute, None):
                options[name] = getattr(op, attribute)
        if getattr(op, "AUTOTUNE", False):
            options["autotune"] = True
        return tensors, options


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


def _wrong_ndim(query: torch.Tensor) -> str:
    return (
        f"attention: query.ndim is {query.ndim} (shape {list(query.shape)}), expected 3, 4 or 5.  Fix: use "
        "[batch, seqlen, heads, head_dim], [batch, seqlen, head_dim] or [batch, seqlen, groups, heads, head_dim]."
    )
