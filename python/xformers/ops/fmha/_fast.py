"""The path without named operators: straight to the library."""

from typing import Any

import torch

from ._explicit import explain
from ._lower import Bias, lower
from .common import Inputs

_attention_forward = torch.ops.xformers.attention_forward.default
_draw_philox_state = torch.ops.xformers.draw_philox_state.default


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
    """(out, lse, lse_low). Gradients are recorded where grad mode is on."""
    try:
        operands: tuple[Any, ...] = ()
        options: dict[str, Any] = {}
        if attn_bias is not None:
            operands, options = lower(query, attn_bias)
        # Each argument that is passed costs time, so defaults are left out.
        if p == 0.0 and scale is None and not need_lse and output_dtype is None:
            return _attention_forward(query, key, value, *operands, **options)
        if scale is not None:
            options["scale"] = scale
        if need_lse:
            options["need_lse"] = True
        if output_dtype is not None:
            options["out_dtype"] = output_dtype
        if p != 0.0:
            options["p"] = p
            if 0 < p <= 1:  # the operator refuses the rest
                options["philox_state"] = _draw_philox_state(device=query.device)
        return _attention_forward(query, key, value, *operands, **options)
    except (ValueError, RuntimeError) as error:
        failure = error
    explain(Inputs(query, key, value, attn_bias, p, scale, output_dtype), failure)


def refuse_dropout(p: float) -> None:
    if p != 0.0:
        raise NotImplementedError(
            f"attention: p is {p}, expected 0.  Fix: use memory_efficient_attention, which keeps the dropout mask from "
            "forward to backward."
        )
