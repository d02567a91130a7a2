"""The table of what is finished: tasks by attentions, test accuracy in per cent.

python -m xformers.benchmarks.LRA.batch_fetch_results --checkpoint_dir lra"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from xformers.helpers.training import UserError, program


def collected(folder: Path) -> dict[tuple[str, str], tuple[float, bool]]:
    """(task, attention) -> (mean accuracy, comparable with published ones)"""
    results = {}
    for path in sorted(folder.glob("*__*/test_eval_summary.json")):
        task, _, attention = path.parent.name.partition("__")
        try:
            summary = json.loads(path.read_text())
            results[task, attention] = float(summary["test_accu_mean"]), bool(summary.get("comparable", False))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}).  Fix: remove it, and run the task again") from error
    return results


def table(results: dict[tuple[str, str], tuple[float, bool]]) -> str:
    """Markdown; * marks what is not comparable with published numbers, the last column is the mean of a row."""
    tasks = sorted({task for task, _ in results})
    lines = [f"| attention | {' | '.join(tasks)} | mean |", "|---" * (len(tasks) + 2) + "|"]
    for attention in sorted({attention for _, attention in results}):
        found = [results.get((task, attention)) for task in tasks]
        cells = ["" if f is None else f"{100 * f[0]:.2f}{'' if f[1] else ' *'}" for f in found]
        there = [f[0] for f in found if f is not None]
        lines.append(f"| {attention} | {' | '.join(cells)} | {100 * sum(there) / len(there):.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="batch_fetch_results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("lra"))
    folder = parser.parse_args(arguments).checkpoint_dir
    results = collected(folder)
    if not results:
        raise UserError(f"{folder} has no <task>__<attention>/test_eval_summary.json.  Fix: name another folder")
    print(table(results))
    if not all(comparable for _, comparable in results.values()):
        print("\n* made by a rule or cut short: not comparable with published numbers")
    return 0


if __name__ == "__main__":
    program(main)
