"""Floating point operations of the library's operators, for torch.utils.flop_counter.

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

from .. import _profiler_library

_COUNTER = "torch.utils.flop_counter"
# Of a dtype, as the library names it: LibTorch's C++ names.
_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "c10::Half",
    torch.bfloat16: "c10::BFloat16",
    torch.int8: "signed char",
    torch.uint8: "unsigned char",
    torch.int32: "int",
    torch.int64: "long",
    torch.bool: "bool",
    torch.float8_e4m3fn: "c10::Float8_e4m3fn",
    torch.float8_e5m2: "c10::Float8_e5m2",
}
_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "seqlen_k", "counts")


def _numbers(tensor: torch.Tensor) -> list[int]:
    """What it holds; nothing for a tensor without data, as in tracing."""
    if tensor.is_meta or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return []
    numbers: list[int] = tensor.tolist()
    return numbers


def _recorded(name: str, value: Any) -> dict[str, Any]:
    """An argument as cost.h has it."""
    if isinstance(value, torch.Tensor):
        numbers = _numbers(value) if name in _LENGTHS else []
        return {"shapes": [[int(n) for n in value.shape]], "type": _TYPES.get(value.dtype, ""), "numbers": numbers}
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return {"shapes": [[int(n) for n in x.shape] for x in value], "type": _TYPES.get(value[0].dtype, "")}
    if value is None:
        return {}
    if isinstance(value, (list, tuple)):
        return {"value": str([int(x) if not isinstance(x, bool) else x for x in value])}
    return {"value": str(value)}


def cost(operator: Any, *args: Any, **options: Any) -> dict[str, Any] | None:
    """{"flops", "bytes", "dtype"} of one call of an operator (such as torch.ops.aten.mm.default), None where unknown.

    flops: a multiplication and an addition are two. bytes: every input read once, every result written once.
    """
    schema = operator._schema
    given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **options}
    arguments = [
        _recorded(a.name, given[a.name] if a.name in given else a.default_value if a.has_default_value() else None)
        for a in schema.arguments
    ]
    result: dict[str, Any] | None = _profiler_library.call("cost", operator=schema.name, arguments=arguments)
    return result


def _formula(operator: Any) -> Callable[..., int]:
    def count(*args: Any, out_val: Any = None, **options: Any) -> int:
        known = cost(operator, *args, **options)
        return known["flops"] if known else 0

    return count


def _register_formulas(counter: ModuleType) -> None:
    """Those of every operator that multiplies and that the counter doesn't know."""
    for rule in _profiler_library.call("cost_rules"):
        namespace, name = rule["name"].split("::")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is None or packet in counter.flop_registry or not rule["multiplies"]:
            continue
        overload = getattr(packet, packet.overloads()[0])
        counter.register_flop_formula(packet, get_raw=True)(_formula(overload))


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
