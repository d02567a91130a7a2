"""What programs call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .profiler import (
    MemSnapshotsProfiler,
    NsightProfiler,
    PyTorchProfiler,
    PyTorchProfiler_CUDAOnly,
    _Profiler,
)
from .profiler_dcgm import DCGMProfiler

__all__ = [
    "DCGMProfiler",
    "DEFAULT_SCHEDULE",
    "MemSnapshotsProfiler",
    "NsightProfiler",
    "PyTorchProfiler",
    "PyTorchProfiler_CUDAOnly",
    "profile",
    "step",
]

# What runs when: (profiler, first step, step after the last).
DEFAULT_SCHEDULE: tuple[tuple[Any, int, int], ...] = (
    (MemSnapshotsProfiler, 0, 2),
    (NsightProfiler, 4, 6),
    (PyTorchProfiler, 6, 7),
    (PyTorchProfiler_CUDAOnly, 7, 8),
)


def profile(
    output_dir: str | Path,
    module: nn.Module | None = None,
    schedule: Sequence[tuple[Any, int, int]] = DEFAULT_SCHEDULE,
) -> _Profiler:
    """A context manager, or an object with `start()`, `step()` and `stop()`, that profiles the steps of a schedule.

    schedule: (class, first step, end step, which isn't profiled any more). A class takes the profiler, and has
        `__enter__`, `__exit__` and `step()`; those of the schedule must not overlap (AssertionError).
    module: has no effect; nothing is hooked into modules.

    Files go to `output_dir`. When the schedule is done the summary is logged; creating the file `trigger` in
    `output_dir` then starts it again, on all ranks at the same step. Nothing that fails in the profiler stops training:
    the summary says what it was.
    """
    return _Profiler(output_dir=output_dir, schedule=schedule, module=module)


def step() -> None:
    """Tells the active profiler that a step has ended. Without one it does nothing."""
    active = _Profiler._CURRENT_PROFILER
    if active is not None:
        active.step()
