"""The library's attention, forward and backward, and the operator classes that run it."""

from __future__ import annotations

from typing import Any

import torch

from ._lower import Bias, bias_name, dense_of, lower, query_lengths
from .common import AttentionBwOpBase, AttentionFwOpBase, Context, Gradients, Inputs

_forward = torch.ops.xformers.attention_forward.default
_backward = torch.ops.xformers.attention_backward.default
_draw_dropout_state = torch.ops.xformers.draw_dropout_state.default


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias,
    p: float,
    scale: float | None,
    out_dtype: torch.dtype | None,
    need_lse: bool,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, lse, lse_low). Gradients are recorded where grad mode is on. options: further arguments of the operator."""
    operands: tuple[Any, ...] = ()
    if attn_bias is not None:
        operands, paging = lower(query, attn_bias)
        options.update(paging)
    # Each argument that is passed costs time, so defaults are left out.
    if scale is not None:
        options["scale"] = scale
    if need_lse:
        options["need_lse"] = True
    if out_dtype is not None:
        options["out_dtype"] = out_dtype
    if p != 0.0:
        options["p"] = p
        if "philox_state" not in options:
            options["philox_state"] = _draw_dropout_state(p, device=query.device)
    return _forward(query, key, value, *operands, **options)


def backward(ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
    """Gradients from what a forward left, whatever format its lse has."""
    operands, options = lower(inp.query, inp.attn_bias)
    options.update(inp._modifiers())
    if inp.scale is not None:
        options["scale"] = inp.scale
    if inp.p != 0:
        if ctx.rng_state is None and inp.p < 1:  # at 1 nothing is drawn
            raise ValueError(
                f"attention: rng_state is None beside p = {inp.p}, expected the random state of the forward.  "
                "Fix: pass the context that the forward returned."
            )
        options.update(p=inp.p, philox_state=ctx.rng_state)
    if ctx.lse_low is not None:
        options["lse_low"] = ctx.lse_low
    dense = dense_of(inp.query, inp.attn_bias)
    if dense is not None and dense.requires_grad:
        options["need_bias_grad"] = True
    lse = torch.ops.xformers.lse_from_format(ctx.lse, inp.query, query_lengths(inp.attn_bias), bias_name(inp.attn_bias))
    with torch.no_grad():
        dq, dk, dv, db, *_ = _backward(grad, inp.query, inp.key, inp.value, ctx.out, lse, *operands, **options)
    return Gradients(dq, dk, dv, db if "need_bias_grad" in options else None)


class Forward(AttentionFwOpBase):
    """A forward that the library's attention serves."""

    _BACKWARD: type[AttentionBwOpBase] | None = None  # of the same backend: the one that repeats its dropout

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        state = _draw_dropout_state(inp.p, device=inp.query.device)
        with torch.no_grad():
            out, lse, lse_low = cls._forward(inp, needs_gradient, **({} if state is None else {"philox_state": state}))
        if not needs_gradient:
            return out, None
        op_bw = cls._BACKWARD if inp.p else None
        return out, Context(lse=lse, out=out, op_bw=op_bw, rng_state=state, lse_low=lse_low)

    @classmethod
    def run(cls, inp: Inputs, need_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        return cls._forward(inp, need_lse)[:2]

    @classmethod
    def _forward(
        cls, inp: Inputs, need_lse: bool, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(out, lse as the contract has it, lse_low)."""
        cls.check_own_options(inp)
        options.update(inp._quantization())
        options.update(inp._modifiers())
        if splits := getattr(cls, "SPLIT_K", None):
            options["num_splits"] = splits
        out_dtype = inp.get_output_dtype() if cls.SUPPORTS_OUTPUT_DTYPE else None
        out, lse, lse_low = forward(*inp._tensors(), inp.attn_bias, inp.p, inp.scale, out_dtype, need_lse, **options)
        return out, cls._to_format(inp, lse, out) if need_lse else lse, lse_low

    @classmethod
    def _to_format(cls, inp: Inputs, lse: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        dtype = torch.float64 if cls._LSE_FLOAT64 and out.dtype in (torch.float32, torch.float64) else None
        if cls._LSE_FORMAT == "packed" and dtype in (None, lse.dtype):
            return lse
        return torch.ops.xformers.lse_to_format(lse, cls._LSE_FORMAT, query_lengths(inp.attn_bias), dtype)

    @classmethod
    def check_own_options(cls, inp: Inputs) -> None:
        """A ValueError where a class attribute contradicts the input."""


class Backward(AttentionBwOpBase):
    """A backward that the library's attention serves."""

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        return backward(ctx, inp, grad)


class NotBuiltForward(AttentionFwOpBase):
    """A forward of which there is the name, for programs that ask; this library has no kernels for it."""

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        raise NotImplementedError(f"{cls.NAME} is not built, expected an operator with kernels.  Fix: leave op out.")

    apply_bmhk = apply  # of [batch, seqlen, heads, head_dim]


class NotBuiltBackward(AttentionBwOpBase):
    """A backward likewise."""

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        raise NotImplementedError(f"{cls.NAME} is not built, expected an operator with kernels.  Fix: leave op out.")
