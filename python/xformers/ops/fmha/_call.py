"""From a call to what runs it: the library itself, or the operators that the caller names, once their contracts take
the input."""

from __future__ import annotations

from typing import Any

import torch

from . import dispatch, generic
from ._engine import forward
from ._lower import Bias, bias_name, dense_of, query_lengths
from .common import AttentionBwOpBase, AttentionFwOpBase, AttentionOpBase, Context, Gradients, Inputs


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias,
    p: float,
    scale: float | None,
    output_dtype: torch.dtype | None,
    need_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, lse, lse_low), without named operators. Gradients are recorded where grad mode is on.

    Contradicting arguments are a ValueError that says which; arguments that no operator takes, a NotImplementedError
    with the reasons of each. What goes wrong while the library runs, such as a lack of memory, is passed on."""
    refused: Exception | None
    try:
        return forward(query, key, value, attn_bias, p, scale, output_dtype, need_lse)
    except (ValueError, NotImplementedError) as error:
        refused = error
    try:
        inp = Inputs(query, key, value, attn_bias, p, scale, output_dtype)
        inp.validate_inputs()
        dispatch._dispatch_fw(inp, needs_gradient=inp._needs_gradient())
        raise refused
    finally:
        refused = None  # an error that its own frame holds would keep the inputs alive


def refuse_dropout(p: float) -> None:
    if p != 0.0:
        raise NotImplementedError(
            f"attention: p is {p}, expected 0.  Fix: use memory_efficient_attention, which keeps the dropout mask from "
            "forward to backward."
        )


def with_operators(inp: Inputs, op: Any, need_lse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) by the operators that the caller names, gradients recorded where they are wanted."""
    fw, bw = _split_op(op)
    inp = _under_autocast(inp)
    inp.validate_inputs()
    if inp._needs_gradient():
        fw = _check_both(inp, fw, bw)
    elif fw is not None:
        dispatch._require(fw, inp)
    return (fw or generic.FwOp).run(inp, need_lse)  # type: ignore[return-value]


def _split_op(op: Any) -> tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]:
    """`op` of an entry point, a pair or a forward alone, as a pair of classes or None."""
    pair = op if isinstance(op, tuple) else (op, None)
    if len(pair) == 2:
        fw, bw = pair
        if (fw is None or _is(fw, AttentionFwOpBase)) and (bw is None or _is(bw, AttentionBwOpBase)):
            return fw, bw
    raise ValueError(
        f"attention: op is {op}, expected a pair of a forward and a backward operator class, each possibly None.  "
        "Fix: for example (fmha.flash.FwOp, fmha.flash.BwOp), or leave it out."
    )


def _is(op: Any, base: type[AttentionOpBase]) -> bool:
    return isinstance(op, type) and issubclass(op, base)


def _check_both(
    inp: Inputs, fw: type[AttentionFwOpBase] | None, bw: type[AttentionBwOpBase] | None
) -> type[AttentionFwOpBase] | None:
    """The forward, once it is sure that both directions take the input and go together."""
    if fw is not None:
        dispatch._require(fw, inp)
    if bw is not None:
        dispatch._require(bw, inp)
    if fw is None:
        if bw is None or torch.compiler.is_compiling():
            return None
        return dispatch._dispatch_fw(inp, needs_gradient=True, pair_with=bw)
    if bw is not None:
        dispatch._check_pair(fw, bw, inp)
    elif not torch.compiler.is_compiling():
        dispatch._dispatch_bw(inp, pair_with=fw)
    return fw


def _under_autocast(inp: Inputs) -> Inputs:
    """Contracts are asked about what the operator will see: the region's dtype."""
    device = inp.query.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return inp
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Any) -> Any:
        if not x.dtype.is_floating_point or x.dtype in (dtype, torch.float64):
            return x
        once = x
        for dim, stride in enumerate(x.stride()):
            if stride == 0 and x.shape[dim] > 1:
                once = once.narrow(dim, 0, 1)
        return once.to(dtype).expand(x.shape)  # what was expanded stays expanded

    if dense_of(inp.attn_bias) is not None:
        inp.attn_bias = cast(inp.attn_bias)
    inp.query, inp.key, inp.value = (cast(x) for x in inp._tensors())
    return inp


def _memory_efficient_attention_forward(inp: Inputs, op: type[AttentionFwOpBase] | None) -> torch.Tensor:
    """The output alone; records no gradient."""
    return _checked(inp, op).apply(inp, needs_gradient=False)[0]


def _memory_efficient_attention_forward_requires_grad(
    inp: Inputs, op: type[AttentionFwOpBase] | None
) -> tuple[torch.Tensor, Context]:
    """The output, and what a backward needs."""
    return _checked(inp, op).apply(inp, needs_gradient=True)  # type: ignore[return-value]


def _checked(inp: Inputs, op: type[AttentionFwOpBase] | None) -> type[AttentionFwOpBase]:
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
