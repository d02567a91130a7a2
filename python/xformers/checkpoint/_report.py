"""What a policy keeps and costs, as a text and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._profile import Operator


@dataclasses.dataclass
class Row:
    """One operator."""

    name: str
    seconds: float
    bytes: int
    kept: bool


@dataclasses.dataclass
class CheckpointReport:
    """Rows in the order of the operators; printed, a table."""

    rows: list[Row]

    @classmethod
    def of(cls, operators: Sequence[Operator], kept: Sequence[bool]) -> CheckpointReport:
        """Of what was measured and chosen."""
        return cls([Row(o.name, o.seconds, o.bytes, k) for o, k in zip(operators, kept, strict=True)])

    @property
    def kept_bytes(self) -> int:
        """Held from forward to backward."""
        return sum(row.bytes for row in self.rows if row.kept)

    @property
    def recomputed_seconds(self) -> float:
        """What backward takes longer than without checkpointing."""
        return sum(row.seconds for row in self.rows if not row.kept)

    def __str__(self) -> str:
        lines = [f"{'operator':<52} {'microseconds':>12} {'MiB':>10}  kept"]
        for row in self.rows:
            lines.append(
                f"{row.name:<52} {row.seconds * 1e6:12.1f} {row.bytes / 2**20:10.3f}  {'yes' if row.kept else 'no'}"
            )
        lines.append(
            f"kept: {self.kept_bytes / 2**20:.3f} MiB; recomputed: {self.recomputed_seconds * 1e6:.1f} microseconds of "
            f"{sum(row.seconds for row in self.rows) * 1e6:.1f}"
        )
        return "\n".join(lines)

    def curve(self, points: int = 33) -> list[tuple[int, float]]:
        """(bytes kept, seconds recomputed) of the best policies, from nothing kept to everything."""
        from ._optimal import choose

        operators = [Operator(row.name, row.seconds, row.bytes) for row in self.rows]
        most = sum(row.bytes for row in self.rows)
        found = []
        for point in range(points):
            report = CheckpointReport.of(operators, choose(operators, most * point / max(points - 1, 1)))
            found.append((report.kept_bytes, report.recomputed_seconds))
        return found

    def plot(self, path: str | Path) -> None:
        """Writes the curve of time over memory as a picture (its kind by the name: .svg, .png), with this policy on it.
        Needs Matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes: Any = figure.add_subplot()
        axes.plot(
            *zip(*((b / 2**20, s * 1e3) for b, s in self.curve()), strict=True), marker=".", label="best policies"
        )
        axes.plot([self.kept_bytes / 2**20], [self.recomputed_seconds * 1e3], "o", label="this policy")
        axes.set(xlabel="kept from forward to backward (MiB)", ylabel="recomputed (ms)", ylim=(0, None), xlim=(0, None))
        axes.legend()
        figure.savefig(path)
