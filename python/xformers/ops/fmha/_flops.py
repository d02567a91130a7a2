"""Floating point operations of the attention operators, for torch.utils.flop_counter."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


def _formula(operator: Any, backward: bool) -> Callable[..., int]:
    """What one call counts. Operators name their arguments alike; packed sequences count their own lengths."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def count(*args: Any, out_val: Any = None, **options: Any) -> int:
        given = {**dict(zip(names, args, strict=False)), **options}
        lengths = {name: given.get(name) for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")}
        lengths["seqused_k"] = given.get("seqlen_k", lengths["seqused_k"])
        shapes = [list(given[name].shape) for name in ("query", "key", "value")]
        if lengths["cu_seqlens_q"] is not None:
            shapes = [[1, *shape] if len(shape) == 3 else shape for shape in shapes]
        causal = (
            given.get("is_causal", False) or given.get("custom_mask_type", 0) != 0 or given.get("window_right") == 0
        )
        return torch.ops.xformers.attention_flops(*shapes, causal=causal, backward=backward, **lengths)

    return count


_ops = torch.ops
for _forward, _backward in (
    (_ops.xformers.attention_forward, _ops.xformers.attention_backward),
    (_ops.xformers.efficient_attention_forward_cutlass, _ops.xformers.efficient_attention_backward_cutlass),
    (_ops.xformers_flash.flash_fwd, _ops.xformers_flash.flash_bwd),
    (_ops.xformers_flash3.flash_fwd, _ops.xformers_flash3.flash_bwd),
):
    register_flop_formula(_forward, get_raw=True)(_formula(_forward, backward=False))
    register_flop_formula(_backward, get_raw=True)(_formula(_backward, backward=True))
