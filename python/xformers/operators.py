"""The operators of the library as functions with types: `operators.rotary(x)` is `torch.ops.xformers.rotary(x)`.

`operators.pyi` has their signatures, as scripts/operator_stubs.py reads them from the library. What each one does is
said where it has a Python name (`xformers.ops`, `xformers.triton`) and in docs/ops.
"""

from typing import Any

import torch


def __getattr__(name: str) -> Any:
    return getattr(torch.ops.xformers, name)


def __dir__() -> list[str]:
    prefix = "xformers::"
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix) and "::_" not in name)
