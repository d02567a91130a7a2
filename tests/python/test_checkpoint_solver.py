"""The choice of what is kept: the table of the specification, and every small graph against all its choices."""

import random
import sys
import time

import numpy as np
import pytest
import torch
from xformers.checkpoint import _optimize_runtime_with_given_memory
from xformers.checkpoint._solver import best_choice


@pytest.fixture(params=["highspy", "scipy.optimize"], autouse=True)
def solver(request, monkeypatch):
    pytest.importorskip(request.param)
    if request.param == "scipy.optimize":
        monkeypatch.setitem(sys.modules, "highspy", None)


@pytest.mark.parametrize(
    "max_memory, kept",
    [
        (0, "10000000"),
        (100, "10000101"),
        (120, "10010000"),
        (200, "10100101"),
        (220, "10010101"),
        (320, "10110101"),
        (420, "11110101"),
    ],
)
def test_table(max_memory, kept):
    """copy_, add, div, mm, dropout, linear, t, relu_."""
    result = _optimize_runtime_with_given_memory(
        memory=[0, 100, 100, 120, 0, 100, 0, 0],
        runtimes=[5, 5, 8, 15, 15, 9, 1, 5],
        max_memory=max_memory,
        view_like_ops=[6],
        inplace_ops=[(0, 0), (7, 5)],
        random_ops=[4],
        force_store_random=False,
    )
    assert result.dtype == torch.float64
    assert "".join(str(int(x)) for x in result) == kept


def graph(seed):
    """Up to 16 operators: sizes and times, some zero, some equal; views, chains in place, random ones."""
    rng = random.Random(seed)
    n = rng.randint(1, 16)
    memory = [rng.choice([0, rng.randint(1, 40), rng.randint(1, 10**9), 64]) for _ in range(n)]
    runtimes = [rng.choice([0.0, rng.random(), float(rng.randint(1, 5)), memory[i] * 1e-3]) for i in range(n)]
    views, inplace, drawn = [], [], []
    for i in range(n):
        kind = rng.random()
        if kind < 0.15:
            views.append(i)
        elif kind < 0.35:
            possible = [j for j in range(i) if j not in views and j not in drawn] or [i]
            inplace.append((i, rng.choice([*possible, i])))
        elif kind < 0.45:
            drawn.append(i)
    return (
        memory,
        runtimes,
        rng.choice([0, 0.1, 0.3, 0.5, 0.9, 1]) * sum(memory),
        views,
        inplace,
        drawn,
        rng.random() < 0.2,
    )


def brute_force(memory, runtimes, max_memory, views, inplace, drawn, force):
    """The largest time of all choices that the rules allow; None where there is none."""
    n = len(memory)
    choices = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    allowed = choices @ np.array(memory, dtype=float) <= max_memory
    for i in views:
        allowed &= choices[:, i] == 0
    for i, parent in inplace:
        allowed &= choices[:, i] == (1 if i == parent else choices[:, parent])
    for i in drawn:
        allowed &= choices[:, i] == int(force)
    return (choices[allowed] @ np.array(runtimes)).max() if allowed.any() else None


@pytest.mark.parametrize("part", range(10))
def test_against_every_choice(part):
    for seed in range(100 * part, 100 * part + 100):
        problem = graph(seed)
        memory, runtimes, max_memory, views, inplace, drawn, force = problem
        best = brute_force(*problem)
        if best is None:
            with pytest.raises(ValueError, match="Fix: a larger memory_budget"):
                _optimize_runtime_with_given_memory(*problem)
            continue
        kept = _optimize_runtime_with_given_memory(*problem).numpy()
        assert kept @ np.array(memory, dtype=float) <= max_memory, seed
        assert all(kept[i] == 0 for i in views) and all(kept[i] == force for i in drawn), seed
        assert all(kept[i] == (1 if i == parent else kept[parent]) for i, parent in inplace), seed
        assert kept @ np.array(runtimes) == pytest.approx(best, rel=1e-9, abs=1e-12), seed


@pytest.mark.wall_clock
@pytest.mark.parametrize("kind", ["any", "time follows size", "equal blocks"])
def test_500_operators_take_under_2_seconds(kind):
    rng = random.Random(0)
    sizes = [rng.randint(1, 1 << 28) for _ in range(500)]
    values = [rng.random() for _ in range(500)]
    if kind == "time follows size":
        values = [size * 1e-12 * (1 + 0.1 * rng.random()) for size in sizes]
    if kind == "equal blocks":
        sizes, values = 25 * sizes[:20], 25 * values[:20]
    best_choice([1.0, 2.0], [1, 1], 1)
    began = time.perf_counter()
    chosen = best_choice(values, sizes, sum(sizes) / 2)
    assert time.perf_counter() - began < 2
    assert sum(sizes[i] for i in chosen) <= sum(sizes) / 2


def test_no_solver(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(RuntimeError, match=r"HiGHS, which is not installed.  Fix: pip install highspy \(or scipy"):
        _optimize_runtime_with_given_memory([1], [1], 1, [], [], [], False)
