"""`torch._dynamo.allow_in_graph` for functions of this package, without its import of the compiler (2 s).

The compiler is told as soon as somebody imports it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

_COMPILER = "torch._dynamo"
_functions: list[Callable[..., Any]] = []

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for function in _functions:
            module.allow_in_graph(function)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _COMPILER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def allow_in_graph(function: _Function) -> _Function:
    """Decorator: torch.compile takes calls of the function as they are, without looking into it."""
    if _COMPILER in sys.modules:
        sys.modules[_COMPILER].allow_in_graph(function)
    else:
        if not _functions:
            sys.meta_path.insert(0, _Finder())
        _functions.append(function)
    return function
