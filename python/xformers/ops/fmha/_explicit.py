"""Calls that name their operators, and what happens when a call fails."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from . import dispatch, generic
from ._lower import dense_of
from .common import AttentionBwOpBase, AttentionFwOpBase, AttentionOpBase, Inputs


def split_op(op: Any) -> tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]:
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


def with_operators(inp: Inputs, op: Any, need_lse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) by the operators that the caller names, gradients recorded where they are wanted."""
    fw, bw = split_op(op)
    inp = _under_autocast(inp)
    inp.validate_inputs()
    if _needs_gradient(inp):
        fw = _check_both(inp, fw, bw)
    elif fw is not None:
        dispatch._require(fw, inp)
    out, lse, _, _ = (fw or generic.FwOp).run(inp, need_lse)
    return out, lse


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


def _needs_gradient(inp: Inputs) -> bool:
    return torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*inp._tensors(), dense_of(inp.attn_bias))
    )


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


def explain(inp: Inputs, error: Exception) -> NoReturn:
    """Why a call without named operators failed: contradicting arguments are a ValueError that says which; arguments
    that no operator takes are a NotImplementedError with the reasons of each."""
    inp.validate_inputs()
    dispatch._dispatch_fw(inp, needs_gradient=_needs_gradient(inp))
    raise error
