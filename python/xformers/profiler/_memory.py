"""Memory as torch.profiler and torch.cuda.memory record it: over time, at its peak by class, and who allocated it."""

import html
import pickle
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_LINES = 20  # that are shown
_CLASSES = {
    "PARAMETER": "parameters",
    "GRADIENT": "gradients",
    "OPTIMIZER_STATE": "optimizer state",
    "ACTIVATION": "activations",
    "INPUT": "activations",  # batches, and what is computed from them without gradient
    "AUTOGRAD_DETAIL": "gradients",  # on their way
    "TEMPORARY": "temporary",
}


def _is_users(file: str) -> bool:
    """Whether a frame is of the program itself. PyTorch gives files without the entry of sys.path that they lie in."""
    parts = Path(file).parts
    if not parts or file.startswith("<"):
        return False
    if {"torch", "xformers"} & set(parts[:-1]):
        return False
    return Path(parts[0]).stem not in sys.stdlib_module_names and f"python3.{sys.version_info.minor}" not in parts[:-1]


# ---- the peak by class ----
def _line_of(event: Any) -> str:
    """The user's line that led to an event, else the nearest Python frame, else the outermost operator."""
    nearest, operator = "", event.name
    parent = event.parent
    while parent is not None:
        kind, fields = parent.typed
        if kind not in (torch._C._profiler._EventType.PyCall, torch._C._profiler._EventType.PyCCall):
            operator = parent.name
        else:
            frame = fields.caller
            where = f"{frame.file_name}:{frame.line_number} {frame.function_name}"
            if _is_users(frame.file_name):
                return where
            nearest = nearest or where
        parent = parent.parent
    return nearest or operator


def peak_by_class(profiler: torch.profiler.profile) -> dict[str, Any]:
    """{"peak_bytes", "classes": {name: bytes}, "lines": [{"where", "class", "bytes"}]} of the device with most memory.

    From a profile with memory, shapes and stacks. What lived before it began counts from its first use on.
    """
    from torch.profiler._memory_profiler import Action, TensorKey  # what export_memory_timeline is made of

    profile = profiler._memory_profile()
    live: dict[Any, tuple[str, int]] = {}
    totals: dict[str, int] = defaultdict(int)
    by_class: dict[tuple[str, str], int] = defaultdict(int)
    peak: dict[str, int] = defaultdict(int)
    # Twice over the timeline: where the peak is, then what lives there.
    timeline = profile.timeline
    peak_at: dict[str, int] = {}
    for index, (_, action, (key, _version), size) in enumerate(timeline):
        device = key.device.type
        if action in (Action.CREATE, Action.PREEXISTING):
            totals[device] += size
        elif action == Action.DESTROY:
            totals[device] -= size
        if totals[device] > peak[device]:
            peak[device], peak_at[device] = totals[device], index
    if not peak:
        return {"peak_bytes": 0, "classes": {}, "lines": []}
    device = "cuda" if "cuda" in peak else max(peak, key=lambda name: peak[name])
    for _, action, (key, version), size in timeline[: peak_at[device] + 1]:
        if key.device.type != device:
            continue
        if action == Action.DESTROY:
            live.pop(key, None)
            continue
        category = profile._categories.get(key, version) if isinstance(key, TensorKey) else None
        live[key] = (_CLASSES[category.name] if category else "other", size)
    lines: dict[Any, str] = {}
    for event in profile._op_tree.dfs():
        if event.typed[0] == torch._C._profiler._EventType.Allocation and event.typed[1].alloc_size > 0:
            allocated = TensorKey.from_allocation(event.typed[1])
            if allocated in live:
                lines[allocated] = _line_of(event)
    classes: dict[str, int] = defaultdict(int)
    for key, (name, size) in live.items():
        classes[name] += size
        by_class[(lines.get(key, "before the profile began"), name)] += size
    largest = sorted(by_class.items(), key=lambda item: -item[1])[:_LINES]
    return {
        "peak_bytes": peak[device],
        "classes": dict(sorted(classes.items(), key=lambda item: -item[1])),
        "lines": [{"where": where, "class": name, "bytes": size} for (where, name), size in largest],
    }


# ---- memory over time ----
@dataclass
class History:
    """points: (microseconds or number of the event, bytes that live); at_peak: line -> bytes."""

    points: list[tuple[float, int]] = field(default_factory=list)
    at_peak: dict[str, int] = field(default_factory=dict)


def _history(events: Iterable[tuple[float, Any, int, str]]) -> History:
    """From (time, address, bytes: negative where it is freed, line). What lived before is not known and left out."""
    history = History()
    live: dict[Any, tuple[int, str]] = {}
    total = peak = 0
    kept = list(events)
    at = -1
    for index, (when, address, size, _) in enumerate(kept):
        if size > 0:
            live[address] = (size, "")
            total += size
        elif address in live:
            total -= live.pop(address)[0]
        else:
            continue
        history.points.append((when, total))
        if total > peak:
            peak, at = total, index
    live.clear()
    for _, address, size, line in kept[: at + 1]:
        if size > 0:
            live[address] = (size, line)
        else:
            live.pop(address, None)
    by_line: dict[str, int] = defaultdict(int)
    for size, line in live.values():
        by_line[line] += size
    history.at_peak = dict(sorted(by_line.items(), key=lambda item: -item[1])[:_LINES])
    return history


def history_of_profile(profiler: torch.profiler.profile, most: int) -> History:
    """Of the CPU, from a profile with memory and stacks."""
    result = profiler.profiler.kineto_results if profiler.profiler is not None else None
    if result is None:
        return History()
    found: list[tuple[float, Any, int, str]] = []
    pending = list(reversed(result.experimental_event_tree()))
    while pending and len(found) < most:
        event = pending.pop()
        pending.extend(reversed(event.children))
        if event.typed[0] == torch._C._profiler._EventType.Allocation:
            allocation = event.typed[1]
            line = _line_of(event) if allocation.alloc_size > 0 else ""
            found.append((event.start_time_ns / 1000, allocation.ptr, allocation.alloc_size, line))
    return _history(sorted(found, key=lambda row: row[0]))


def history_of_snapshot(snapshot: dict[str, Any]) -> History:
    """Of the GPU with the longest history, from torch.cuda.memory._snapshot()."""
    traces: list[list[dict[str, Any]]] = snapshot.get("device_traces", [])
    events: list[tuple[float, Any, int, str]] = []
    longest = sorted(traces, key=len)[-1] if traces else []
    for number, event in enumerate(longest):
        if event["action"] not in ("alloc", "free_completed"):
            continue
        frames = event.get("frames", [])
        frame = next((f for f in frames if _is_users(f["filename"])), frames[0] if frames else None)
        line = f"{frame['filename']}:{frame['line']} {frame['name']}" if frame else "unknown"
        size = event["size"] if event["action"] == "alloc" else -event["size"]
        events.append((float(event.get("time_us", number)), event["addr"], size, line))
    return _history(events)


def save_snapshot(snapshot: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        pickle.dump(snapshot, file)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Memory</title><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto; padding: 16px; }}
svg {{ width: 100%; height: auto; background: #8882; }}
td {{ padding: 2px 10px 2px 0; overflow-wrap: anywhere; }} td:first-child {{ white-space: nowrap; text-align: right; }}
</style></head><body><h1>Memory over {duration}</h1>
<p>{count} allocations and frees that were recorded; at most {peak} lived at once, beside what was there before.</p>
<svg viewBox="0 0 1000 300" role="img" aria-label="Memory over time">
<polygon fill="#1668c7" points="0,300 {points} 1000,300"/></svg>
<h2>Who allocated what lives at the peak</h2><table>{rows}</table></body></html>
"""


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def picture(history: History) -> str:
    """A page that loads nothing."""
    first, last = history.points[0][0], history.points[-1][0]
    peak = max(max(size for _, size in history.points), 1)
    share = len(history.points) // 2000 + 1  # each point the highest of its share
    chosen = [
        max(history.points[i : i + share], key=lambda point: point[1]) for i in range(0, len(history.points), share)
    ]
    points = " ".join(
        f"{1000 * (when - first) / max(last - first, 1e-9):.1f},{300 - 280 * size / peak:.1f}" for when, size in chosen
    )
    rows = "".join(
        f"<tr><td>{_size(size)}</td><td>{html.escape(line)}</td></tr>" for line, size in history.at_peak.items()
    )
    duration = f"{(last - first) / 1000:.1f} ms"
    return _PAGE.format(duration=duration, count=len(history.points), peak=_size(peak), points=points, rows=rows)
