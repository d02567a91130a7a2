"""Rows of all programs, Python's and C++'s, in one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xformers.helpers.training import UserError

ROOFS = ("gemm", "copy", "read")  # sides that say what the machine can do, and no rival does


@dataclass
class Row:
    """Seconds and spread of each side, ours first; `roof`: the share of what the machine can do, where it is known."""

    name: str
    sides: dict[str, tuple[float, float]]
    roof: float | None = None

    @property
    def ours(self) -> str:
        return next(iter(self.sides))

    @property
    def rival(self) -> str | None:
        """The fastest of the others."""
        others = [side for side in self.sides if side != self.ours and side not in ROOFS]
        return min(others, key=lambda side: self.sides[side][0], default=None)

    @property
    def speedup(self) -> float | None:
        return None if self.rival is None else self.sides[self.rival][0] / self.sides[self.ours][0]


@dataclass
class Run:
    """The rows of a file, and where and when they were measured."""

    device: str
    date: str
    rows: list[Row]
    source: str


def _side(side: Mapping[str, Any]) -> tuple[float, float] | None:
    for median, low, high, unit in (("median_s", "quartile1_s", "quartile3_s", 1), ("median", "low", "high", 1)):
        if median in side:
            return unit * side[median], unit * (side.get(high, 0.0) - side.get(low, 0.0)) / 2
    if "seconds" in side:
        return side["seconds"], side.get("spread", 0.0)
    if "microseconds" in side:
        return 1e-6 * side["microseconds"], 1e-6 * side.get("spread", 0.0)
    return None


def _row(row: Mapping[str, Any]) -> Row | None:
    """None for rows of another kind, of memory or of summaries."""
    name, sides = row.get("name", row.get("row")), row.get("sides")
    if not isinstance(name, str) or not sides:
        return None
    named = sides if isinstance(sides, Mapping) else {side["name"]: side for side in sides}
    found = {key: _side(side) for key, side in named.items() if isinstance(side, Mapping)}
    times = {key: value for key, value in found.items() if value is not None and value[0] > 0}
    if not times:
        return None
    first = "ours" if "ours" in times else next(iter(times))
    ordered = {first: times[first], **{key: value for key, value in times.items() if key != first}}
    roof = next((row[key] for key in ("of_gemm", "of_copy", "of_read") if isinstance(row.get(key), float)), None)
    return Row(name, ordered, roof)


def read_run(path: Path) -> Run:
    """UserError for a file that holds no rows."""
    try:
        contents = json.loads(path.read_text())
        machine = contents.get("machine", {})
        device = contents.get("device") or contents.get("gpu") or machine["cpu"]
        date = str(contents.get("date") or machine["date"])[:10]
        rows = [made for made in map(_row, contents["rows"]) if made is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error!r}, expected a file of benchmarks.  Fix: measure again") from error
    return Run(device, date, rows, path.name)


def history(name: str, runs: Iterable[Run], device: str) -> list[tuple[str, float, float]]:
    """(date, seconds, spread) of our side of this row on this device, oldest first."""
    found = [
        (run.date, *row.sides[row.ours]) for run in runs if run.device == device for row in run.rows if row.name == name
    ]
    return sorted(found)
