"""One HTML page: a table and a picture per program."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from .rows import Row, Run, history

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c2127;
       background: #fff }
table { border-collapse: collapse; width: 100%; margin: 0 0 2rem }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #d9dee3; text-align: right;
         font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
.slower { color: #b3261e; font-weight: 600 }
img { max-width: 100%; background: #fff }
@media (prefers-color-scheme: dark) { body { color: #e4e7ea; background: #14181c } td, th { border-color: #333b43 } }
"""


def picture(rows: Sequence[Row]) -> str | None:
    """Speed over the best rival, as a data: URL; None without matplotlib or without rivals."""
    shown = [(row.name, row.speedup) for row in rows if row.speedup is not None][:40]
    if not shown:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 0.6 + 0.24 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    values = [speedup for _, speedup in shown]
    axes.barh(range(len(shown)), values, color=["#0b6e4f" if v >= 1 else "#b3541e" for v in values])
    axes.axvline(1, color="#1c2127", linewidth=1)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times the speed of the best rival")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def page(runs: Mapping[str, Run], stored: Sequence[Run], slower: Mapping[str, Sequence[str]]) -> str:
    """`slower`: names of rows by program."""
    parts = [f"<!doctype html><meta charset=utf-8><title>xformers: benchmarks</title><style>{STYLE}</style>"]
    parts.append("<h1>Benchmarks</h1>")
    for program, run in runs.items():
        parts.append(f"<h2>{html.escape(program)}</h2><p>{html.escape(run.device)}, {run.date}</p>")
        if image := picture(run.rows):
            parts.append(f"<img alt='speed over the best rival' src='{image}'>")
        heads = ("row", "ours", "&plusmn;", "rival", "rival's", "speedup", "of roof", "earlier")
        parts.append("<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>")
        for row in run.rows:
            seconds, spread = row.sides[row.ours]
            rival = row.rival
            earlier = [f"{date}: {1e3 * s:.3f}" for date, s, _ in history(row.name, stored, run.device)]
            cells = [
                html.escape(row.name),
                f"{1e3 * seconds:.3f} ms",
                f"{1e3 * spread:.3f}",
                html.escape(rival or ""),
                "" if rival is None else f"{1e3 * row.sides[rival][0]:.3f} ms",
                "" if row.speedup is None else f"{row.speedup:.2f}",
                "" if row.roof is None else f"{100 * row.roof:.0f} %",
                "<br>".join(earlier),
            ]
            mark = " class=slower" if row.name in slower.get(program, ()) else ""
            parts.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        parts.append("</table>")
    return "\n".join(parts) + "\n"
