"""What a type checker sees: the signatures of the package, and those of the operators."""

import importlib
import inspect
import typing
from pathlib import Path

import pytest
import torch
import xformers.components.nvfuser
import xformers.info
import xformers.triton

import xformers
from xformers import operators
from xformers.ops import fmha

SCRIPT = Path(__file__).parents[2] / "scripts/operator_stubs.py"
MODULES = [xformers.ops, fmha, xformers.triton, xformers.components, xformers.components.nvfuser, xformers.info]


def stubs():
    spec = importlib.util.spec_from_file_location("operator_stubs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_says_that_it_has_types():
    assert (Path(xformers.__file__).parent / "py.typed").exists()


def test_stubs_are_those_of_the_library():
    assert stubs().STUB.read_text() == stubs().stub(), "Fix: python scripts/operator_stubs.py"


@pytest.mark.parametrize(
    "schema, expected",
    [
        ("x::f() -> ()", "def f() -> None: ..."),
        (
            "x::f(Tensor(a!) x, Tensor? y=None, *, int[] z=[], SymInt n) -> Tensor(a)[]",
            "def f(x: Tensor, y: Tensor | None = None, *, z: Sequence[int] = (), n: int) -> list[Tensor]: ...",
        ),
        (
            'x::f(str s="a", float e=9.99e-07, float p=0., Device? d=None) -> (Tensor out, int[] sizes)',
            'def f(s: str = "a", e: float = 9.99e-07, p: float = 0.0, d: torch.device | str | None = None) -> '
            "tuple[Tensor, list[int]]: ...  # out, sizes",
        ),
    ],
)
def test_a_schema_in_python(schema, expected):
    assert stubs().function(schema) == expected + "\n"


def test_operators_by_name():
    assert operators.rotary is torch.ops.xformers.rotary
    assert {"attention_forward", "rms_norm", "swiglu_fused"} <= set(dir(operators))
    assert all(callable(getattr(operators, name)) for name in dir(operators))
    with pytest.raises(AttributeError):
        operators.no_such_operator  # noqa: B018  (the question is whether it is there)


def functions():
    """(name, function) of everything public: functions, and methods that our classes define."""
    for module in MODULES:
        for name in getattr(module, "__all__", dir(module)):
            thing = getattr(module, name)
            if name.startswith("_") or not getattr(thing, "__module__", "").startswith("xformers"):
                continue
            if inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing
            elif inspect.isclass(thing):
                for method, function in vars(thing).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


FUNCTIONS = dict(functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_signatures(name):
    function = FUNCTIONS[name]
    hints = function.__annotations__
    for parameter in list(inspect.signature(function).parameters.values()):
        assert parameter.name in ("self", "cls") or parameter.name in hints, f"{parameter} has no type"
    assert hints.get("return", "missing") not in ("missing", "Any", typing.Any), f"{name} returns {hints.get('return')}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_say_what_they_do(name):
    if not name.endswith(".forward") and ".FwOp" not in name and ".BwOp" not in name:
        assert inspect.getdoc(FUNCTIONS[name]), f"{name} has no docstring"
