"""Operations and time of a profiled region, by the C++ analysis (xformers/profiler/analysis.h)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import _profiler_library
from .device_limits import _DTYPES, DeviceLimit

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _by_dtype(flops: dict[str, float]) -> dict[torch.dtype, float]:
    return {_DTYPES[name]: count for name, count in flops.items() if name in _DTYPES}


def _by_name(flops: dict[torch.dtype, float]) -> dict[str, float]:
    return {_NAMES[dtype]: float(count) for dtype, count in flops.items() if dtype in _NAMES}


def _of(event: Any, name: str, otherwise: Any) -> Any:
    value = getattr(event, name, None)
    return otherwise if value is None else value()


def _as_trace_event(event: Any) -> dict[str, Any]:
    """An event of torch.profiler as its traces have it."""
    on_cpu = event.device_type() == torch.profiler.DeviceType.CPU
    start_ns = event.start_ns() if hasattr(event, "start_ns") else event.start_us() * 1000
    duration_ns = event.duration_ns() if hasattr(event, "duration_ns") else event.duration_us() * 1000
    args: dict[str, Any] = {
        "Sequence number": _of(event, "sequence_nr", -1),
        "Fwd thread id": _of(event, "fwd_thread_id", 0),
        "Input type": list(_of(event, "dtypes", [])),
        "Input Dims": [list(shape) if shape else [] for shape in _of(event, "shapes", [])],
        "Concrete Inputs": ["" if value is None else str(value) for value in _of(event, "concrete_inputs", [])],
    }
    return {
        "ph": "X",
        "cat": "cpu_op" if on_cpu else "kernel",
        "name": event.name(),
        "pid": 0,
        "tid": int(_of(event, "start_thread_id", 0)),
        "ts": start_ns / 1000,
        "dur": duration_ns / 1000,
        "args": args,
    }


@dataclass
class AnalyzedTrace:
    """Floating-point operations of a region, by dtype and pass, and how long it took.

    float16 holds bfloat16 too, whose peak is the same; every 8-bit float counts as float8_e4m3fn.
    """

    operations_per_dtype_fw: dict[torch.dtype, float] = field(default_factory=dict)
    operations_per_dtype_bw: dict[torch.dtype, float] = field(default_factory=dict)  # holds what is recomputed
    total_time_s: float = 0.0
    operations_per_dtype_recomputed: dict[torch.dtype, float] = field(default_factory=dict)
    unknown_dtype: float = 0.0  # operations whose dtype the trace doesn't say
    steps: list[dict[str, Any]] = field(default_factory=list)  # name, duration_us and parts_us of each
    problem: str = ""  # why the trace wasn't read to its end

    @staticmethod
    def from_profile(events: Iterable[Any]) -> "AnalyzedTrace":
        """From the events of a profile: `prof.profiler.kineto_results.events()`, recorded with shapes."""
        trace = {"traceEvents": [_as_trace_event(event) for event in events]}
        return AnalyzedTrace._from(_profiler_library.call("analyze", text=json.dumps(trace)))

    @staticmethod
    def from_trace(path: str | Path) -> "AnalyzedTrace":
        """From a trace that torch.profiler wrote, .json or .json.gz."""
        return AnalyzedTrace._from(_profiler_library.call("analyze", trace=str(path)))

    @staticmethod
    def _from(found: dict[str, Any]) -> "AnalyzedTrace":
        passes = [found["forward"] or {}, found["backward"] or {}, found["recomputed"] or {}]
        return AnalyzedTrace(
            _by_dtype(passes[0]),
            _by_dtype(passes[1]),
            found["total_time_s"],
            _by_dtype(passes[2]),
            sum(flops.get("unknown", 0.0) for flops in passes[:2]),
            found["steps"] or [],
            found["problem"],
        )

    def compute_num_ops(
        self, dtype: torch.dtype | None = None, fw: bool | None = None, bw: bool | None = None
    ) -> float:
        """Operations of a dtype (None: of all) in the passes asked for; both unless one of them is named."""
        if fw is None and bw is None:
            fw = bw = True
        total = 0.0
        for wanted, flops in ((fw, self.operations_per_dtype_fw), (bw, self.operations_per_dtype_bw)):
            if wanted:
                total += sum(count for key, count in flops.items() if dtype is None or key == dtype)
        return total + (self.unknown_dtype if dtype is None and fw and bw else 0.0)

    def _utilization(self, limit: DeviceLimit, seconds: float | None) -> dict[str, float | None]:
        found: dict[str, float | None] = _profiler_library.call(
            "utilization",
            forward=_by_name(self.operations_per_dtype_fw),
            backward=_by_name(self.operations_per_dtype_bw),
            recomputed=_by_name(self.operations_per_dtype_recomputed),
            seconds=self.total_time_s if seconds is None else seconds,
            limit=limit._row(),
        )
        return found

    def compute_hfu(self, hardware_limit: DeviceLimit, seconds: float | None = None) -> float:
        """What runs over what could run: each dtype against its own peak, 0 where no peak is known."""
        return self._utilization(hardware_limit, seconds)["hfu"] or 0.0

    def compute_mfu(self, hardware_limit: DeviceLimit, seconds: float | None = None) -> float:
        """The same of the model's own work: without what is recomputed, and at most three forward passes."""
        return self._utilization(hardware_limit, seconds)["mfu"] or 0.0
