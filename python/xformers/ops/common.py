"""The registry of operators: what `python -m xformers.info` lists, and where profilers and checkpoint policies look."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch


def get_operator(library: str, name: str) -> Callable[..., Any]:
    """torch.ops.<library>.<name>; where it is missing, a function that raises a RuntimeError when it is called."""
    try:
        operator: Callable[..., Any] = getattr(getattr(torch.ops, library), name)
        return operator
    except (AttributeError, RuntimeError):

        def no_such_operator(*args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError(
                f"No such operator {library}::{name}: this build of xformers has none.  "
                "Fix: see python -m xformers.info for what it has."
            )

        return no_such_operator


def get_xformers_operator(name: str) -> Callable[..., Any]:
    """torch.ops.xformers.<name>, or a function that says that it is missing."""
    return get_operator("xformers", name)


class BaseOperator:
    """An operator as a class that is never instantiated."""

    OPERATOR: Any = None
    NAME: str
    OPERATOR_CATEGORY: str

    @classmethod
    def is_available(cls) -> bool:
        """Whether it is built."""
        return cls.OPERATOR is not None and getattr(cls.OPERATOR, "__name__", "") != "no_such_operator"


OPERATORS_REGISTRY: list[type[BaseOperator]] = []
FUNC_TO_XFORMERS_OPERATOR: dict[Any, type[BaseOperator]] = {}

_Class = TypeVar("_Class", bound=type[BaseOperator])


def register_operator(cls: _Class) -> _Class:
    """Class decorator: enters an operator into the registry."""
    OPERATORS_REGISTRY.append(cls)
    if cls.OPERATOR is not None:
        FUNC_TO_XFORMERS_OPERATOR[cls.OPERATOR] = cls
    return cls


def _get_storage_base(x: torch.Tensor) -> int:
    """Address of the storage that a tensor lies in, wherever in it the tensor starts."""
    return x.untyped_storage().data_ptr()
