"""A profiler that says where time and memory of a training step go, and how far it is from the hardware's limits.

    with xformers.profiler.profile(output_dir="profile", schedule=xformers.profiler.api.DEFAULT_SCHEDULE):
        for batch in batches:
            train_step(batch)
            xformers.profiler.step()

`docs/profiler.md` reads a report.
"""

from . import api as api
from .api import profile, step
from .profiler import MemSnapshotsProfiler, NsightProfiler, PyTorchProfiler
from .report import write_report

__all__ = ["profile", "step", "MemSnapshotsProfiler", "NsightProfiler", "PyTorchProfiler", "write_report"]
