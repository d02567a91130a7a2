"""From a call to what runs it: the library itself, or the operators that the caller names, once their contracts take
the input."""

from __future__ import annotations

from typing import Any, cast

import torch

from . import dispatch, generic
from ._bias.sequences import SequencesBias
from ._engine import forward
from ._lower import Bias, bias_name, dense_of, query_lengths
from .attn_bias import AttentionBias
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
    given: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, lse, lse_low), without named operators. Gradients are recorded where grad mode is on. given: the modifiers.

    Contradicting arguments are a ValueError that says which; arguments that no operator takes, a NotImplementedError
    with the reasons of each. What goes wrong while the library runs, such as a lack of memory, is passed on."""
    refused: Exception | None
    try:
        return forward(query, key, value, attn_bias, p, scale, output_dtype, need_lse, **given)
    except (ValueError, NotImplementedError) as error:
        refused = error
    try:
        inp = Inputs(query, key, value, attn_bias, p, scale, output_dtype, **given)
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


def refuse_sinks(sinks: torch.Tensor | None) -> None:
    if sinks is not None:
        raise ValueError(
            f"attention: sinks is a tensor {list(sinks.shape)} beside partial attention, expected None.  Fix: add them "
            "once, when merging: merge_attentions([out, torch.zeros_like(out)], [lse, sinks expanded like lse])."
        )


def with_operators(inp: Inputs, op: Any, need_lse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) by the operators that the caller names, gradients recorded where they are wanted. A ValueError where
    they don't take the input or don't go together, a NotImplementedError where none goes with the one that is named."""
    fw, bw = _split_op(op)
    inp = _under_autocast(inp)
    inp.validate_inputs()
    tensors, options = inp._request(fw)
    torch.ops.xformers.attention_check_named(
        fw._KEY if fw else "",
        bw._KEY if bw else "",
        *tensors,
        **options,
        forward_name=fw.NAME if fw else "",
        backward_name=bw.NAME if bw else "",
        needs_gradient=inp._needs_gradient(),
        use_fa3=dispatch._get_use_fa3(),
    )
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


def _under_autocast(inp: Inputs) -> Inputs:
    """Contracts are asked about what the operator will see: the region's dtype."""
    device = inp.query.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        bias = inp.attn_bias
        packed = isinstance(bias, SequencesBias)
        dense = dense_of(inp.query, bias) if isinstance(bias, (torch.Tensor, SequencesBias)) else None
        inp.query, inp.key, inp.value, dense = torch.ops.xformers.attention_under_autocast(*inp._tensors(), dense)
        if inp.sinks is not None and inp.sinks.dtype != torch.float32:
            inp.sinks = inp.sinks.to(inp.query.dtype)
        if dense is not None and packed:
            inp.attn_bias = cast(Any, bias).with_bias(dense)
        elif dense is not None:
            inp.attn_bias = cast(Any, bias).to(dense.dtype) if isinstance(bias, AttentionBias) else dense
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
