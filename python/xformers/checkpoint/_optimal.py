"""The policy that recomputes least within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._policies import OptimalPolicy
from ._profile import Operator, profile_operators
from ._report import CheckpointReport
from ._solver import _optimize_runtime_with_given_memory


def check_budget(memory_budget: float) -> float:
    """It, or a ValueError."""
    if not 0 <= memory_budget <= 1:
        raise ValueError(
            f"checkpoint: memory_budget is {memory_budget}, expected a number from 0 to 1.  Fix: 0 recomputes "
            "everything, 1 keeps everything; for bytes see fit_to_memory."
        )
    return memory_budget


def costs(operators: list[Operator]) -> tuple[list[int], list[float]]:
    """Bytes and seconds of each. The last output is the function's own: it is there anyway."""
    memory = [operator.bytes for operator in operators]
    for i in reversed(range(len(operators))):
        if not operators[i].view and operators[i].parent is None:
            memory[i] = 0
            break
    return memory, [operator.seconds for operator in operators]


def choose(operators: list[Operator], max_bytes: float, force_store_random: bool = False) -> list[bool]:
    """Which of them are kept: the largest time whose memory is at most max_bytes."""
    memory, seconds = costs(operators)
    kept = _optimize_runtime_with_given_memory(
        memory,
        seconds,
        max_bytes,
        view_like_ops=[i for i, operator in enumerate(operators) if operator.view],
        inplace_ops=[(i, operator.parent) for i, operator in enumerate(operators) if operator.parent is not None],
        random_ops=[i for i, operator in enumerate(operators) if operator.random],
        force_store_random=force_store_random,
    )
    return [bool(keeps) for keeps in kept]


def policy_of(operators: list[Operator], kept: list[bool]) -> OptimalPolicy:
    """For these operators, with a report."""
    names = [operator.name for operator in operators]
    return OptimalPolicy(names, kept, CheckpointReport.of(operators, kept))


def keepable_bytes(operators: list[Operator]) -> int:
    """What a budget is a part of: all that can be kept, and at most what autograd keeps without checkpointing."""
    memory, _ = costs(operators)
    usable = sum(m for m, operator in zip(memory, operators, strict=True) if not operator.view)
    return min(usable, sum(operator.saved for operator in operators)) or usable


def get_optimal_checkpoint_policy(
    function: Callable[..., Any], *args: Any, memory_budget: float, times: str = "measure"
) -> OptimalPolicy:
    """The policy_fn with which checkpointing `function(*args)` recomputes least, while it keeps at most
    `memory_budget` (0: nothing to 1: everything) of the bytes that would be kept without checkpointing.

    function: runs six times; random generators and buffers stay as they were.
    times: "measure", device time on whatever device the operators run; "estimate": from operations and bytes, in one
    run on tensors without data: no memory, and the same every time. The optimum is that of a mixed-integer program
    (HiGHS).

    The result can be pickled; its `report` says per operator time, bytes, kept or not. ValueError where the budget is
    not in [0, 1] or less than what must be kept, RuntimeError where no solver is installed (highspy, or SciPy)."""
    check_budget(memory_budget)
    operators = profile_operators(function, args, {}, times)
    return optimal_policy(operators, memory_budget, args)


def optimal_policy(operators: list[Operator], memory_budget: float, args: tuple[Any, ...]) -> OptimalPolicy:
    """Of what was measured."""
    import torch

    without_tensors = not any(isinstance(a, torch.Tensor) for a in args)
    kept = choose(operators, memory_budget * keepable_bytes(operators), force_store_random=without_tensors)
    return policy_of(operators, kept)
