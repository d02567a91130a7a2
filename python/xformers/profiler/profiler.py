"""The schedule and its profilers, thin on torch.profiler and torch.cuda.memory."""

import json
import logging
import os
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Optional

import torch
from torch import nn

from . import _memory
from .device_limits import _find, get_device_limits
from .profile_analyzer import AnalyzedTrace
from .report import write_report

logger = logging.getLogger("xformers.profiler")

Schedule = Sequence[tuple[Any, int, int]]
_TRIGGER_EVERY = 10  # steps between two looks for the trigger file


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _refuse_a_second() -> None:
    """PyTorch's profiler doesn't refuse to start twice: the first one then fails when it stops."""
    if torch._C._autograd._profiler_enabled():
        raise RuntimeError("profiler: torch.profiler is running already, expected one at a time.  Fix: stop it first.")


class NsightProfiler:
    """Starts and stops the range that Nsight Systems and Nsight Compute record (`--capture-range=cudaProfilerApi`)."""

    def __init__(self, main_profiler: "_Profiler") -> None:
        self.main_profiler = main_profiler

    def __enter__(self) -> None:
        if _has_gpu():
            torch.cuda.cudart().cudaProfilerStart()
        else:
            self.main_profiler.summary.append(("Nsight", "not started: no GPU"))

    def __exit__(self, *_: Any) -> None:
        if _has_gpu():
            torch.cuda.cudart().cudaProfilerStop()

    def step(self) -> None:
        pass


class PyTorchProfiler:
    """A full trace of its steps, for Perfetto, and from it FLOPs, HFU and MFU, time and memory by class."""

    ACTIVITIES: ClassVar[list[torch.profiler.ProfilerActivity]] = [
        torch.profiler.ProfilerActivity.CPU,
        torch.profiler.ProfilerActivity.CUDA,
    ]
    DETAILS: ClassVar[dict[str, Any]] = {
        "profile_memory": True,
        "record_shapes": True,
        "with_stack": True,
        "with_flops": True,
    }
    ANALYZED: ClassVar[bool] = True

    def __init__(self, main_profiler: "_Profiler") -> None:
        self.main_profiler = main_profiler
        self.num_steps = 0
        # What can be recorded: without a GPU the CPU alone.
        activities = self.ACTIVITIES if _has_gpu() else [torch.profiler.ProfilerActivity.CPU]
        self.pytorch_profiler = torch.profiler.profile(
            on_trace_ready=self._on_trace, activities=activities, acc_events=True, **self.DETAILS
        )

    # A class that derives from this one may make `pytorch_profiler` and `num_steps` in an `__init__` of its own.
    _annotation: torch.profiler.record_function | None = None
    _first_step = 0
    _packed: list[dict[str, Any]] = []

    def _begin_step(self) -> None:
        self._annotation = torch.profiler.record_function(f"ProfilerStep#{self._first_step + self.num_steps}")
        self._annotation.__enter__()

    def _end_step(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def __enter__(self) -> None:
        _refuse_a_second()
        if not _has_gpu():
            self.main_profiler.summary.append((type(self).__name__, "of the CPU alone: no GPU"))
        self._first_step = self.main_profiler.done_steps
        self.pytorch_profiler.__enter__()
        if self.ANALYZED:
            torch.ops.xformers._record_packed_calls()
        self._begin_step()

    def step(self) -> None:
        self._end_step()
        self.num_steps += 1
        if self.main_profiler.goes_on(self):
            self._begin_step()

    def __exit__(self, *exception: Any) -> None:
        self._end_step()
        if self.ANALYZED:
            self._packed = json.loads(torch.ops.xformers._recorded_packed_calls())
        if _has_gpu():
            torch.cuda.synchronize()  # the steps' kernels belong to them
        self.pytorch_profiler.__exit__(None, None, None)  # calls _on_trace

    def _on_trace(self, prof: torch.profiler.profile) -> None:
        main = self.main_profiler
        name = "_".join(activity.name for activity in self.ACTIVITIES)
        folder = main.output_dir / f"profile_{name}_{self._first_step:06}"
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / f"{main.worker_name}.{time.time_ns()}.pt.trace.json.gz"
        prof.export_chrome_trace(str(trace))
        main.traces.append(trace)
        if self.ANALYZED:
            try:
                self._analyze_trace(prof)
            except Exception as error:
                logger.warning("xformers.profiler: the analysis of %s failed: %s", trace, error, exc_info=True)
                main.summary.append(("TraceAnalysis", "Error"))

    def _analyze_trace(self, prof: torch.profiler.profile) -> None:
        """Of the trace that was written last."""
        trace = self.main_profiler.traces[-1]
        main = self.main_profiler
        facts: dict[str, Any] = {"packed": self._packed}
        _write_facts(trace, facts)  # the lengths of packed sequences, which the analysis reads
        found = AnalyzedTrace.from_trace(trace)
        if found.problem:
            main.summary.append(("TraceAnalysis", found.problem))
        steps = max(self.num_steps, 1)
        traced = sum(step["duration_us"] for step in found.steps) * 1e-6 / max(len(found.steps), 1)
        undisturbed = main.undisturbed_step_s()
        seconds = undisturbed or traced
        operations = found.compute_num_ops() / steps
        limit = get_device_limits("cuda") if _has_gpu() else _find("CPU", (0, 0))
        main.summary += [
            ("Step time (ms)", f"{seconds * 1000:.0f}"),
            ("TFlop/step", f"{operations / 1e12:.1f}"),
            ("TFlops", f"{operations / 1e12 / seconds:.1f}" if seconds > 0 else "n/a"),
        ]
        for name, compute in (("HFU", found.compute_hfu), ("MFU", found.compute_mfu)):
            value = f"{compute(limit, seconds * steps):.3f}" if limit and seconds > 0 else "n/a"
            main.summary.append((name, value))
        facts.update(step_time_s=undisturbed or 0.0, traced_step_time_s=traced)
        try:
            facts["memory"] = _memory.peak_by_class(prof)
        except Exception as error:
            facts["notes"] = [f"Memory by class is missing: {type(error).__name__} {error}"]
        _write_facts(trace, facts)


def _write_facts(trace: Path, facts: dict[str, Any]) -> None:
    """What the report can't know from the trace, beside it; whole at once: other ranks may be reading it."""
    if _has_gpu():
        major, minor = torch.cuda.get_device_capability()
        facts.update(device=torch.cuda.get_device_name(), major=major, minor=minor)
    else:
        facts.update(device="CPU", major=0, minor=0)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        facts["rank"] = torch.distributed.get_rank()
    path = trace.with_name(trace.name.removesuffix(".pt.trace.json.gz") + ".facts.json")
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(facts))
    beside.replace(path)


class PyTorchProfiler_CUDAOnly(PyTorchProfiler):
    """A trace of the GPU's work alone, which slows a step down little. Without a GPU: of the CPU's operators alone."""

    ACTIVITIES: ClassVar[list[torch.profiler.ProfilerActivity]] = [torch.profiler.ProfilerActivity.CUDA]
    DETAILS: ClassVar[dict[str, Any]] = {}
    ANALYZED: ClassVar[bool] = False


class MemSnapshotsProfiler:
    """Memory over its steps as a picture, with the lines that allocated what lives at the peak; on a GPU the snapshot
    too, for https://pytorch.org/memory_viz. Also saved when a step dies of lack of memory."""

    MAX_EVENTS: ClassVar[int] = 100_000

    def __init__(self, main_profiler: "_Profiler") -> None:
        self.main_profiler = main_profiler
        self._profiler: torch.profiler.profile | None = None
        self.enabled = False

    def __enter__(self) -> None:
        if _has_gpu():
            torch.cuda.memory._record_memory_history(max_entries=self.MAX_EVENTS)
        else:
            _refuse_a_second()
            activities = [torch.profiler.ProfilerActivity.CPU]
            self._profiler = torch.profiler.profile(
                activities=activities, acc_events=True, profile_memory=True, with_stack=True
            )
            self._profiler.__enter__()
        self.enabled = True

    def step(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        if not self.enabled:
            return
        self.enabled = False
        main = self.main_profiler
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            history = _memory.history_of_profile(self._profiler, self.MAX_EVENTS)
        else:
            try:
                snapshot = torch.cuda.memory._snapshot()
            finally:
                torch.cuda.memory._record_memory_history(enabled=None)
            history = _memory.history_of_snapshot(snapshot)
        if not history.points:
            main.summary.append(("MemTrace", "(no allocation recorded)"))
            return
        file = main._create_output_filename("memory_trace_plot.html")
        file.write_text(_memory.picture(history))
        if self._profiler is None:
            _memory.save_snapshot(snapshot, main._create_output_filename("memory_snapshot.pickle"))
        main.summary.append(("MemTrace", str(file.relative_to(main.output_dir))))


@dataclass
class _Entry:
    """A profiler of the schedule: steps begin <= step < end."""

    cls: Any
    begin: int
    end: int
    running: Any = None  # the object, while it runs


class _Profiler:
    """What `xformers.profiler.profile` returns."""

    _CURRENT_PROFILER: ClassVar[Optional["_Profiler"]] = None

    def __init__(self, output_dir: str | Path, schedule: Schedule, module: nn.Module | None = None) -> None:
        self._check_schedule(schedule)
        self.schedule = schedule
        self.done_steps = 0
        self.summary: list[tuple[str, str]] = []
        self.traces: list[Path] = []
        self.output_dir = Path(output_dir).absolute()
        self.worker_name = f"{socket.gethostname()}_{os.getpid()}"
        self._is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._times: list[float] = []  # seconds of steps that nothing slowed down
        self._began = 0.0
        self._is_slowed = True
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._failed("output_dir", error)
        self._arm(offset=0)

    @staticmethod
    def _check_schedule(schedule: Schedule) -> None:
        if len(schedule) == 0:
            logger.warning("xformers.profiler: the schedule is empty, nothing will be profiled")
        last_end = 0
        for cls, begin, end in sorted(schedule, key=lambda entry: entry[1:]):
            what = f"profiler: the steps of {getattr(cls, '__name__', cls)} are {begin} to {end}"
            assert begin >= 0, f"{what}, expected a first step of at least 0"
            assert end > 0, f"{what}, expected an end above 0"
            assert begin < end, f"{what}, expected the first before the end (which isn't profiled any more)"
            assert begin >= last_end, f"{what}, expected to begin at {last_end} or later, where an earlier entry ends"
            last_end = end

    def _arm(self, offset: int) -> None:
        entries = [_Entry(cls, begin + offset, end + offset) for cls, begin, end in self.schedule]
        self._entries = sorted(entries, key=lambda entry: entry.begin)
        self._running: list[_Entry] = []
        self._is_done = not self._entries
        # Until then a step only counts.
        self._next_change = self._entries[0].begin if self._entries else 0

    # ---- life cycle ----
    def start(self) -> None:
        self.__enter__()

    def stop(self, *exception: Any) -> None:
        self.__exit__(*(exception or (None, None, None)))

    def __enter__(self) -> "_Profiler":
        if _Profiler._CURRENT_PROFILER is not None:
            raise ValueError("profiler: another one is active, expected one at a time.  Fix: stop it first.")
        _Profiler._CURRENT_PROFILER = self
        self._change()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _Profiler._CURRENT_PROFILER = None
        for entry in self._running:
            self._guarded(entry, "__exit__", exc_type, exc_value, traceback)
        self._running = []

    def step(self) -> None:
        """Tells that a step has ended."""
        self.done_steps += 1
        if not self._running and self.done_steps < self._next_change:
            self._note_time()
        elif not self._is_done:
            self._scheduled_step()
        elif self.done_steps % _TRIGGER_EVERY == 0:
            self._look_for_trigger()

    def _note_time(self) -> None:
        now = time.perf_counter()
        if not self._is_slowed:
            self._times.append(now - self._began)
        self._began = now
        self._is_slowed = False

    def _scheduled_step(self) -> None:
        if _has_gpu():
            torch.cuda.synchronize()  # what is queued belongs to the steps that are over
        traced = any(not isinstance(entry.running, NsightProfiler) for entry in self._running)
        self._is_slowed = self._is_slowed or traced
        self._note_time()
        for entry in self._running:
            self._guarded(entry, "step")
        self._change()
        # What starting and stopping took is no part of the next step.
        self._began = time.perf_counter()

    def _change(self) -> None:
        """Stops and starts what the schedule says for the step that begins."""
        for entry in [e for e in self._running if e.end <= self.done_steps]:
            self._guarded(entry, "__exit__", None, None, None)
            self._running.remove(entry)
        for entry in self._entries:
            if entry.begin == self.done_steps:
                self._start(entry)
        if self._is_done:
            return
        ahead = [step for e in self._entries for step in (e.begin, e.end) if step > self.done_steps]
        self._next_change = min(ahead, default=self.done_steps)
        if not ahead:
            self._finish()

    def _start(self, entry: _Entry) -> None:
        try:
            entry.running = entry.cls(self)
            entry.running.__enter__()
        except Exception as error:
            self._failed(getattr(entry.cls, "__name__", str(entry.cls)), error)
            entry.running = None
        else:
            self._running.append(entry)

    def _guarded(self, entry: _Entry, method: str, *args: Any) -> None:
        try:
            getattr(entry.running, method)(*args)
        except Exception as error:
            self._failed(type(entry.running).__name__, error)

    def _failed(self, what: str, error: Exception) -> None:
        """A failure of the profiler is told, and training goes on."""
        logger.warning("xformers.profiler: %s failed, training goes on: %s", what, error)
        self.summary.append((what, f"Error: {type(error).__name__}: {error}"))

    def _finish(self) -> None:
        self._is_done = True
        is_first = not self._is_distributed or torch.distributed.get_rank() == 0
        if is_first and any(trace.parent.name.startswith("profile_CPU") for trace in self.traces):
            self._write_report()
        logger.warning("xformers.profiler: summary\n%s", self.format_summary())

    def _write_report(self) -> None:
        folder = next(trace.parent for trace in self.traces if trace.parent.name.startswith("profile_CPU"))
        try:
            page = write_report(folder)
            self.summary.append(("Report", str(page.relative_to(self.output_dir))))
        except Exception as error:
            self._failed("Report", error)

    # ---- the trigger file ----
    def _look_for_trigger(self) -> None:
        """`trigger` becomes `trigger.<step ten later>`, which every rank sees before that step and starts after it."""
        with suppress(OSError):
            trigger = f"{self.output_dir}/trigger"
            if os.path.exists(trigger):
                Path(f"{trigger}.{self.done_steps + _TRIGGER_EVERY:09}").write_text(self.worker_name)
                Path(trigger).unlink(missing_ok=True)
            if os.path.exists(f"{trigger}.{self.done_steps:09}"):
                self.summary = []
                self.traces = []
                self._arm(offset=self.done_steps + 1)

    # ---- for the profilers of the schedule ----
    def goes_on(self, profiler: Any) -> bool:
        """Whether it has further steps: in its own `step()`, whether that isn't the last call."""
        return any(entry.running is profiler and entry.end > self.done_steps for entry in self._running)

    def undisturbed_step_s(self) -> float | None:
        """Seconds of a step that nothing traced; None where there was none yet.

        The median; where a GPU works behind the host the mean, since the host's time of one step isn't the GPU's and
        only changes of the schedule wait for it.
        """
        if not self._times:
            return None
        return statistics.mean(self._times) if _has_gpu() else statistics.median(self._times)

    def _create_output_filename(self, filename: str) -> Path:
        """<out>/<step>_<file>, of several processes <out>/<stem>/<step>_<host>_<pid><ending>."""
        if not self._is_distributed:
            return self.output_dir / f"{self.done_steps:06}_{filename}"
        name = Path(filename)
        folder = self.output_dir / name.stem
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.done_steps:06}_{self.worker_name}{name.suffix}"

    def format_summary(self) -> str:
        """A line per entry, "title: value", the titles of one width."""
        width = max((len(title) for title, _ in self.summary), default=0)
        return "\n".join(f"{title + ':':<{width + 1}} {value}" for title, value in self.summary)
