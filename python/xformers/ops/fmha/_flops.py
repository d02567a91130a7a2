"""Floating point operations of the attention operators, for torch.utils.flop_counter.

The counter takes long to import and brings Triton along, in whatever state that is: formulas are registered when a
program imports it.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


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


def _register_formulas(counter: ModuleType) -> None:
    ops = torch.ops
    for forward, backward in (
        (ops.xformers.attention_forward, ops.xformers.attention_backward),
        (ops.xformers.efficient_attention_forward_cutlass, ops.xformers.efficient_attention_backward_cutlass),
        (ops.xformers_flash.flash_fwd, ops.xformers_flash.flash_bwd),
        (ops.xformers_flash3.flash_fwd, ops.xformers_flash3.flash_bwd),
    ):
        counter.register_flop_formula(forward, get_raw=True)(_formula(forward, backward=False))
        counter.register_flop_formula(backward, get_raw=True)(_formula(backward, backward=True))


class _AtImport(MetaPathFinder):
    """Finds the counter where it lies, and registers the formulas once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _COUNTER else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register_formulas(module)
            sys.meta_path.remove(self)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER in sys.modules:
    _register_formulas(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _AtImport())
