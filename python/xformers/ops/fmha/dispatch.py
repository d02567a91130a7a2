"""Which operator takes an input: asked of the library, which knows every contract and the order of preference."""

from __future__ import annotations

from typing import Any

import torch

from .common import OPERATORS_BY_KEY, AttentionBwOpBase, AttentionFwOpBase, AttentionOpBase, Inputs

_use_fa3 = False


def _set_use_fa3(use_flash_attention3: bool) -> None:
    """Whether flash3 may be chosen where no operator is named."""
    global _use_fa3
    _use_fa3 = use_flash_attention3


def _get_use_fa3() -> bool:
    return _use_fa3


def _dispatch_fw_priority_list(inp: Inputs, needs_gradient: bool) -> list[type[AttentionFwOpBase]]:
    """Forwards in the order in which they are asked."""
    return _priority(False, inp, needs_gradient)


def _dispatch_bw_priority_list(inp: Inputs) -> list[type[AttentionBwOpBase]]:
    """Backwards in the order in which they are asked."""
    return _priority(True, inp, True)


def _priority(backward: bool, inp: Inputs, needs_gradient: bool) -> list[Any]:
    tensors, options = inp._request()
    keys = torch.ops.xformers.attention_priority(
        backward, *tensors, **options, needs_gradient=needs_gradient, use_fa3=_use_fa3
    )
    return [OPERATORS_BY_KEY[key] for key in keys]


def _dispatch_fw(
    inp: Inputs, needs_gradient: bool, pair_with: type[AttentionBwOpBase] | None = None
) -> type[AttentionFwOpBase]:
    """The first forward that takes the input (and has a backward, or goes with the one that is named), or a
    NotImplementedError with the reasons of all."""
    return _dispatch(False, inp, needs_gradient=needs_gradient, pair_with=pair_with._KEY if pair_with else "")


def _dispatch_bw(
    inp: Inputs, varlen_lse_packed: bool | None = None, pair_with: type[AttentionFwOpBase] | None = None
) -> type[AttentionBwOpBase]:
    """The same for a backward, given the format of the lse of packed sequences."""
    return _dispatch(
        True, inp, needs_gradient=True, lse_packed=varlen_lse_packed, pair_with=pair_with._KEY if pair_with else ""
    )


def _dispatch(backward: bool, inp: Inputs, **choice: Any) -> Any:
    tensors, options = inp._request()
    key = torch.ops.xformers.attention_dispatch(backward, *tensors, **options, use_fa3=_use_fa3, **choice)
    return OPERATORS_BY_KEY[key]


def _require(op: type[AttentionOpBase], inp: Inputs) -> None:
    """A ValueError with all its reasons where the operator does not take the input."""
    tensors, options = inp._request(op)
    torch.ops.xformers.attention_require(op._KEY, *tensors, **options, name=op.NAME)


def _ensure_op_supports_or_raise(exc_type: type[Exception], name: str, op: type[AttentionOpBase], inp: Inputs) -> None:
    """`_require` with another exception and the caller's name."""
    try:
        _require(op, inp)
    except ValueError as error:
        raise exc_type(f"{name}: {error}") from None
