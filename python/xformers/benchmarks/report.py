"""All benchmarks, or some, into JSON, pictures and one HTML page, beside what earlier runs measured.

Runs the programs of xformers.benchmarks, and the C++ drivers where --build_dir has them. Exit code 1 where a row of
ours is slower than the latest stored one of this device, by more than its noise."""

from __future__ import annotations

import argparse
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xformers.helpers.training import UserError, program
from xformers.helpers.training.files import write_atomically

from . import __path__ as _package
from ._report.page import page
from ._report.rows import Row, Run, history, read_run
from ._sides import slower_rows

PYTHON = sorted(
    module.name.removeprefix("benchmark_")
    for module in pkgutil.iter_modules(_package)
    if module.name.startswith("benchmark_")
)
CPP = ("attention", "blocks")


def command(name: str, options: argparse.Namespace, target: Path) -> list[str] | None:
    """None for a driver that is not built."""
    if name.startswith("cpp-"):
        driver = options.build_dir / "bin" / f"bench_{name.removeprefix('cpp-')}"
        if not driver.exists():
            return None
        return [str(driver), "--json", str(target), *(["--quick"] if options.smoke else [])]
    words = [sys.executable, "-m", f"xformers.benchmarks.benchmark_{name}", "--json", str(target)]
    return words + ["--smoke", "--samples", "3"] * options.smoke


def slower_names(run: Run, stored: Sequence[Run]) -> list[str]:
    """Rows that are slower than the latest stored ones of the same device."""
    names = []
    for row in run.rows:
        earlier = history(row.name, stored, run.device)
        if earlier:
            _, seconds, spread = earlier[-1]
            if slower_rows([_as_entry(row, *row.sides[row.ours])], {row.name: _as_entry(row, seconds, spread)}):
                names.append(row.name)
    return names


def _as_entry(row: Row, seconds: float, spread: float) -> dict[str, object]:
    return {"name": row.name, "sides": {row.ours: {"seconds": seconds, "spread": spread}}}


def main(arguments: Sequence[str] | None = None) -> int:
    every = [*PYTHON, *(f"cpp-{name}" for name in CPP)]
    parser = argparse.ArgumentParser(
        prog="report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", choices=every, default=every, metavar="NAME", help=", ".join(every))
    parser.add_argument("--out", type=Path, default=Path("build/report"), help="folder of the page and the JSON files")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder of stored results; may be missing"
    )
    parser.add_argument("--build_dir", type=Path, default=Path("build/release"), help="of the C++ drivers")
    parser.add_argument("--smoke", action="store_true", help="small sizes, in a minute or two; judges nothing")
    parser.add_argument("--only_page", action="store_true", help="of the JSON files that are there, without measuring")
    options = parser.parse_args(arguments)
    stored = []
    for path in sorted(options.results.glob("*.json")):
        try:
            stored.append(read_run(path))
        except UserError:  # of another kind, such as records of tests
            continue
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Run] = {}
    failed = []
    for name in options.names:
        target = options.out / f"{name}.json"
        if not options.only_page:
            words = command(name, options, target)
            if words is None:
                print(f"{name}: left out, {options.build_dir} has no such driver (make bench builds it)")
                continue
            print(f"--- {name}", flush=True)
            if subprocess.run(words, check=False).returncode != 0:
                failed.append(name)
                continue
        if target.exists():
            runs[name] = read_run(target)
    if not runs:
        raise UserError(f"nothing was measured ({', '.join(failed) or 'no files'}).  Fix: other --names")
    slower = {} if options.smoke else {name: slower_names(run, stored) for name, run in runs.items()}
    write_atomically(options.out / "index.html", page(runs, stored, slower).encode())
    rows = sum(len(run.rows) for run in runs.values())
    for name, names in slower.items():
        for row in names:
            print(f"slower: {name}: {row}")
    count = sum(map(len, slower.values()))
    print(
        f"report: {rows} rows of {len(runs)} programs, {count} slower, {len(failed)} failed: {options.out}/index.html"
    )
    return 1 if count or failed else 0


if __name__ == "__main__":
    program(main)
