"""What checkpointing has to know about an operator, read from its schema once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import SAC_IGNORED_OPS

_aten = torch.ops.aten

# Outputs that are never kept: they hold nothing new, or belong to the bookkeeping of PyTorch.
OPS_TO_ALWAYS_SKIP: set[Any] = {
    _aten.detach.default,
    _aten.lift_fresh.default,
    _aten.clone.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
    torch.ops.profiler._record_function_enter_new.default,
} | SAC_IGNORED_OPS

# Views by what they do, though their schemas do not say so.
_UNMARKED_VIEWS = {_aten._unsafe_view.default, _aten.lift_fresh.default}
# Normalisations that move running statistics without a word in their schemas: positions of these arguments.
_UNMARKED_WRITES: dict[Any, tuple[int, ...]] = {
    _aten.native_batch_norm.default: (3, 4),
    _aten.cudnn_batch_norm.default: (3, 4),
    _aten.miopen_batch_norm.default: (3, 4),
}
_COLLECTIVES = ("c10d", "_c10d_functional", "fsdp", "symm_mem")


class Facts:
    """Of one operator."""

    __slots__ = (
        "casts",
        "collective",
        "constant",
        "dropout",
        "in_place",
        "keepable",
        "seeded",
        "uncounted",
        "view",
        "writes",
    )

    def __init__(self, func: Any) -> None:
        schema = getattr(func, "_schema", None)  # operators of higher order have none
        self.view: bool = func in _UNMARKED_VIEWS or bool(getattr(func, "is_view", False))
        self.seeded = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        self.dropout: tuple[int, str] | None = (
            None  # where the probability of dropping is, if it draws for nothing else
        )
        self.writes: tuple[str | int, ...] = _UNMARKED_WRITES.get(func, ())  # arguments, by position or keyword
        self.in_place = False  # writes, and returns nothing but what it wrote
        if schema is not None:
            for i, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.writes += (argument.name if argument.kwarg_only else i,)
                if argument.name in ("dropout_p", "p") and ("attention" in str(func) or "flash" in str(func)):
                    self.dropout = (i, argument.name)
            self.in_place = bool(self.writes) and all(r.alias_info is not None for r in schema.returns)
        self.casts = func is _aten._to_copy.default
        self.constant = func is _aten.lift_fresh.default
        # clone reads its input and makes a tensor: it is followed like every operator, yet never kept.
        self.uncounted = func in OPS_TO_ALWAYS_SKIP and func is not _aten.clone.default
        self.keepable = func not in OPS_TO_ALWAYS_SKIP and not self.view
        self.collective = str(func).split(".")[0] in _COLLECTIVES

    def is_counted(self, args: tuple[Any, ...]) -> bool:
        """Whether a call takes part in the order of operators. Autocast casts a weight once and remembers it, so the
        forward pass and the recomputation may differ in whether they cast it: such casts do not."""
        if self.casts:
            source = args[0]
            return not (source.is_leaf and source.requires_grad)
        return not self.uncounted

    def draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call moves a random generator. Attention does where it drops, and has not been given a state."""
        if not self.seeded or kwargs.get("philox_state") is not None:
            return False
        if self.dropout is None:
            return True
        position, name = self.dropout
        p = args[position] if position < len(args) else kwargs.get(name, 0)
        return p is None or p > 0

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors that a call writes into."""
        found: list[torch.Tensor] = []
        for place in self.writes:
            if isinstance(place, str):
                found += tensors(kwargs.get(place))
            elif place < len(args):
                found += tensors(args[place])
        return found

    def replace_written(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], replace: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every written tensor t in replace(t)'s place."""

        def swap(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return replace(value)
            return [replace(t) for t in value] if isinstance(value, list | tuple) else value

        args = tuple(swap(a) if i in self.writes else a for i, a in enumerate(args))
        return args, {name: swap(a) if name in self.writes else a for name, a in kwargs.items()}


class _AllFacts(dict[Any, Facts]):
    def __missing__(self, func: Any) -> Facts:
        facts = self[func] = Facts(func)
        return facts


FACTS = _AllFacts()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those of an argument or a result: a tensor, or a flat list of them among other things."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            if isinstance(one, torch.Tensor):
                yield one


def storage_of(t: torch.Tensor) -> int:
    """Identity of the memory that a tensor lies in; 0 where it has none of its own (sparse tensors, for example)."""
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0
