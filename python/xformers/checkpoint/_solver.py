"""Which operators to keep: the mixed-integer program of HiGHS, and what the operators have to do with each other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch


def _optimize_runtime_with_given_memory(
    memory: Sequence[float],
    runtimes: Sequence[float],
    max_memory: float,
    view_like_ops: Sequence[int],
    inplace_ops: Sequence[tuple[int, int]],
    random_ops: Sequence[int],
    force_store_random: bool,
) -> torch.Tensor:
    """float64 [operators], 1 where an operator's outputs are kept: the largest sum of `runtimes` whose sum of `memory`
    is at most `max_memory` (any units). Views are never kept. inplace_ops: pairs of an operator and the one whose
    output it writes into, with which it goes; (i, i): it writes into a tensor from outside and is kept. Random
    operators are kept where force_store_random, and not elsewhere.

    ValueError where what must be kept takes more than max_memory; RuntimeError where no solver is installed."""
    memory, runtimes = [float(m) for m in memory], [float(t) for t in runtimes]
    count = len(memory)
    parent = list(range(count))
    for op, of in inplace_ops:
        parent[op] = of

    def root(op: int) -> int:
        while parent[op] != op:
            op = parent[op]
        return op

    roots = [root(i) for i in range(count)]
    forced: dict[int, bool] = {root(op): True for op, of in inplace_ops if op == of}
    forced |= {root(op): bool(force_store_random) for op in random_ops}
    forced |= {root(op): False for op in view_like_ops}

    groups: dict[int, tuple[float, float]] = {}  # by root: time, memory
    for i, of in enumerate(roots):
        time, space = groups.get(of, (0.0, 0.0))
        groups[of] = (time + runtimes[i], space + memory[i])
    left = max_memory - sum(groups[of][1] for of, kept in forced.items() if kept)
    if left < 0:
        raise ValueError(
            f"checkpoint: what must be kept (tensors written in place, random numbers) takes "
            f"{max_memory - left:.4g} of a memory of {max_memory:.4g}.  Fix: a larger memory_budget."
        )
    free = [of for of in groups if of not in forced]
    kept = {of for of, keeps in forced.items() if keeps}
    kept |= {free[i] for i in best_choice([groups[of][0] for of in free], [groups[of][1] for of in free], left)}
    return torch.tensor([float(of in kept) for of in roots], dtype=torch.float64)


def best_choice(values: Sequence[float], sizes: Sequence[float], capacity: float) -> list[int]:
    """Indices of the largest sum of values whose sum of sizes is at most capacity. Equal ones are one integer variable,
    so that a stack of equal blocks is as quick to solve as one."""
    solve = _solver()  # also where nothing is left to decide: whether it is installed does not depend on the input
    chosen: list[int] = []
    kinds: dict[tuple[float, float], list[int]] = {}
    for i, (value, size) in enumerate(zip(values, sizes, strict=True)):
        if size <= 0:
            chosen.append(i)  # costs nothing
        elif size <= capacity:
            kinds.setdefault((value, size), []).append(i)
    if sum(size * len(which) for (_, size), which in kinds.items()) <= capacity:
        return chosen + [i for which in kinds.values() for i in which]
    # In units of the largest value: the solver's tolerances are absolute.
    largest = max(value for value, _ in kinds) or 1.0
    rows = [[size / capacity for _, size in kinds]]
    numbers = solve([value / largest for value, _ in kinds], rows, [1.0], [len(which) for which in kinds.values()])
    taken = [i for which, number in zip(kinds.values(), numbers, strict=True) for i in which[:number]]
    # What fits within the solver's tolerance may yet be too large: then these together are ruled out, exactly.
    free = [i for which in kinds.values() for i in which]
    rows, most = [[sizes[i] / capacity for i in free]], [1.0]
    for _ in range(_CUTS):
        if sum(sizes[i] for i in taken) <= capacity:
            break
        cover = set(taken)
        for i in sorted(taken, key=lambda i: sizes[i]):
            if sum(sizes[j] for j in cover) - sizes[i] > capacity:
                cover.remove(i)
        rows.append([float(i in cover) for i in free])
        most.append(len(cover) - 1.0)
        numbers = solve([values[i] / largest for i in free], rows, most, [1] * len(free))
        taken = [i for i, number in zip(free, numbers, strict=True) if number]
    while sum(sizes[i] for i in taken) > capacity:
        taken.remove(min(taken, key=lambda i: values[i]))
    # Values below its tolerance, too.
    for i in sorted(set(free) - set(taken), key=lambda i: -values[i]):
        if sum(sizes[j] for j in taken) + sizes[i] <= capacity:
            taken.append(i)
    return chosen + taken


# (values, rows, most, copies) -> how many of each: the largest value with each row's sum at most its number in `most`
Solve = Callable[[list[float], list[list[float]], list[float], list[int]], list[int]]
_SECONDS = 1.5  # after which the best solution so far is taken
_CUTS = 50


def _solver() -> Solve:
    for package, solve in (("highspy", _with_highspy), ("scipy.optimize", _with_scipy)):
        try:
            importlib.import_module(package)
        except ImportError:
            continue
        return solve
    raise RuntimeError(
        "checkpoint: finding the best policy takes HiGHS, which is not installed.  Fix: pip install highspy (or scipy, "
        "whose milp has it too)."
    )


def _with_highspy(values: list[float], rows: list[list[float]], most: list[float], copies: list[int]) -> list[int]:
    highspy: Any = importlib.import_module("highspy")
    highs = importlib.import_module("highspy._core")._Highs()  # highspy.Highs() prints a banner before any option
    for option, value in (
        ("output_flag", False),
        ("mip_rel_gap", 0.0),
        ("mip_abs_gap", 1e-9),
        ("threads", 1),
        ("time_limit", _SECONDS),
    ):
        highs.setOptionValue(option, value)
    for value, number in zip(values, copies, strict=True):
        highs.addCol(-value, 0.0, float(number), 0, [], [])
    indices = list(range(len(values)))
    for i in indices:
        highs.changeColIntegrality(i, highspy.HighsVarType.kInteger)
    for row, upper in zip(rows, most, strict=True):
        highs.addRow(-highspy.kHighsInf, upper, len(row), indices, row)
    highs.run()
    return [round(x) for x in highs.getSolution().col_value]


def _with_scipy(values: list[float], rows: list[list[float]], most: list[float], copies: list[int]) -> list[int]:
    optimize: Any = importlib.import_module("scipy.optimize")
    result = optimize.milp(
        [-value for value in values],
        integrality=[1] * len(values),
        bounds=optimize.Bounds(0, copies),
        constraints=optimize.LinearConstraint(rows, ub=most),
        options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
    )
    return [round(x) for x in result.x]
