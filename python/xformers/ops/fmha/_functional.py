"""The entry points on `Inputs`: forward, forward with context, backward."""

from __future__ import annotations

from typing import Any

import torch

from . import dispatch, generic
from ._lower import bias_name, query_lengths
from .common import AttentionBwOpBase, AttentionFwOpBase, Context, Gradients, Inputs


def _memory_efficient_attention_forward(inp: Inputs, op: type[AttentionFwOpBase] | None) -> torch.Tensor:
    """The output alone; records no gradient."""
    return _checked(inp, op).apply(inp, needs_gradient=False)[0]


def _memory_efficient_attention_forward_requires_grad(
    inp: Inputs, op: type[AttentionFwOpBase] | None
) -> tuple[torch.Tensor, Context]:
    """The output, and what a backward needs."""
    out, context = _checked(inp, op).apply(inp, needs_gradient=True)
    assert context is not None
    return out, context


def _checked(inp: Inputs, op: type[AttentionFwOpBase] | None) -> Any:
    """The operator to run, once it is sure that it takes the input."""
    inp.validate_inputs()
    if op is None:
        dispatch._dispatch_fw(inp, needs_gradient=False)
        return generic.FwOp
    dispatch._require(op, inp)
    return op


def _memory_efficient_attention_backward(
    ctx: Context,
    inp: Inputs,
    grad: torch.Tensor,
    op: type[AttentionBwOpBase] | None,
    *,
    _skip_op_checks: bool = False,
) -> Gradients:
    """Gradients, in the shapes of the inputs. `ctx.lse` may be in any format, unless an operator is named: then in its
    own."""
    inp.validate_inputs()
    if op is None:
        op = ctx.op_bw or generic.BwOp
    elif not _skip_op_checks:
        _check_lse_format(ctx, inp, op)
        dispatch._require(op, inp)
    return op.apply(ctx, inp, grad)


def _check_lse_format(ctx: Context, inp: Inputs, op: type[AttentionBwOpBase]) -> None:
    bias = bias_name(inp.attn_bias)
    got = torch.ops.xformers.lse_format(ctx.lse, inp.query, query_lengths(inp.attn_bias), bias)
    expected = "packed" if op.VARLEN_LSE_PACKED else "padded"
    if got not in ("any", expected):
        raise ValueError(
            f"attention: the lse {list(ctx.lse.shape)} is {got}, expected {expected} for {op.NAME} beside a {bias}.  "
            "Fix: take forward and backward of one kind, or leave op out."
        )
