"""From `Inputs` to the library's operators and back: what every operator class runs."""

from __future__ import annotations

from typing import Any

import torch

from ._lower import bias_name, dense_of, lower, query_lengths
from .common import AttentionBwOpBase, AttentionFwOpBase, Context, Gradients, Inputs

_forward = torch.ops.xformers.attention_forward.default
_backward = torch.ops.xformers.attention_backward.default
_draw_philox_state = torch.ops.xformers.draw_philox_state.default


def forward(
    inp: Inputs, *, need_lse: bool = False, out_dtype: torch.dtype | None = None, num_splits: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(out, lse, lse_low, random state or None). Records gradients where grad mode is on."""
    operands, options = lower(inp.query, inp.attn_bias)
    if inp.scale is not None:
        options["scale"] = inp.scale
    if need_lse:
        options["need_lse"] = True
    if out_dtype is not None:
        options["out_dtype"] = out_dtype
    if num_splits:
        options["num_splits"] = num_splits
    state = _draw_philox_state(device=inp.query.device) if 0 < inp.p <= 1 else None
    if inp.p != 0:
        options.update(p=inp.p, philox_state=state)
    return *_forward(inp.query, inp.key, inp.value, *operands, **options, **inp._quantization()), state


def _to_format(op: type[AttentionFwOpBase], inp: Inputs, lse: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """lse as a contract returns it."""
    dtype = torch.float64 if op._LSE_FLOAT64 and out.dtype in (torch.float32, torch.float64) else None
    if op._LSE_FORMAT == "packed" and dtype in (None, lse.dtype):
        return lse
    return torch.ops.xformers.lse_to_format(lse, op._LSE_FORMAT, query_lengths(inp.attn_bias), dtype)


def backward(ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
    """Gradients from what a forward left, whatever format its lse has."""
    operands, options = lower(inp.query, inp.attn_bias)
    if inp.scale is not None:
        options["scale"] = inp.scale
    if inp.p != 0:
        if ctx.rng_state is None:
            raise ValueError(
                f"attention: rng_state is None beside p = {inp.p}, expected the random state of the forward.  "
                "Fix: pass the context that the forward returned."
            )
        options.update(p=inp.p, philox_state=ctx.rng_state)
    if ctx.lse_low is not None:
        options["lse_low"] = ctx.lse_low
    dense = dense_of(inp.attn_bias)
    if dense is not None and dense.requires_grad:
        options["need_bias_grad"] = True
    lse = torch.ops.xformers.lse_from_format(ctx.lse, inp.query, query_lengths(inp.attn_bias), bias_name(inp.attn_bias))
    with torch.no_grad():
        dq, dk, dv, db = _backward(grad, inp.query, inp.key, inp.value, ctx.out, lse, *operands, **options)
    return Gradients(dq, dk, dv, db if "need_bias_grad" in options else None)


class Forward(AttentionFwOpBase):
    """A forward that the library's attention serves."""

    _BACKWARD: type[AttentionBwOpBase] | None = None  # of the same backend: the one that repeats its dropout

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        with torch.no_grad():
            out, lse, lse_low, state = cls.run(inp, needs_gradient)
        if not needs_gradient:
            return out, None
        op_bw = cls._BACKWARD if inp.p else None
        return out, Context(lse=lse, out=out, op_bw=op_bw, rng_state=state, lse_low=lse_low)

    @classmethod
    def run(cls, inp: Inputs, need_lse: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(out, lse as the contract has it, lse_low, random state). Records gradients where grad mode is on."""
        cls.check_own_options(inp)
        out_dtype = inp.get_output_dtype() if cls.SUPPORTS_OUTPUT_DTYPE else None
        splits = getattr(cls, "SPLIT_K", None) or 0
        out, lse, lse_low, state = forward(inp, need_lse=need_lse, out_dtype=out_dtype, num_splits=splits)
        return out, _to_format(cls, inp, lse, out) if need_lse else lse, lse_low, state

    @classmethod
    def check_own_options(cls, inp: Inputs) -> None:
        """A ValueError where a class attribute contradicts the input."""


class Backward(AttentionBwOpBase):
    """A backward that the library's attention serves."""

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        return backward(ctx, inp, grad)


def not_built(name: str, direction: str) -> Any:
    """What an operator does that this library has no kernels for."""
    return NotImplementedError(f"{name} has no {direction} here: it is not built.  Fix: leave op out.")
