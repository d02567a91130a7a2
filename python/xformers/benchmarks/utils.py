"""For benchmarks of one's own, as upstream's scripts are written: a function of a case yields timers of
torch.utils.benchmark, and what they measure is printed, stored under a label, compared and drawn.

    def softmax(shape):
        x = torch.randn(shape)
        yield Timer("x.softmax(-1)", globals={"x": x}, label="softmax", sub_label=str(shape), description="eager")

    benchmark_main_helper(softmax, product_dict(shape=[(8, 512), (8, 4096)]))
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from xformers.helpers.training import UserError
from xformers.helpers.training.files import write_atomically

from ._sides import Seconds, in_turns, slower_rows

BASELINES = ("eager", "vanilla", "pytorch")  # descriptions that --omit-baselines leaves out
# How rows of benchmarks write dtypes.
DTYPE2STR = {torch.bfloat16: "b16", torch.half: "f16", torch.float32: "f32", torch.float64: "f64"}
Results = Mapping[str, Mapping[str, float]]  # of pretty_*: results[along][series]


class NotSupportedInputError(Exception):
    """Raised by a class of `benchmark_main_helper2` for a case that it can't run."""


def create_argparser() -> argparse.ArgumentParser:
    """Options of `benchmark_main_helper`."""
    parser = argparse.ArgumentParser(description="Benchmarks.")
    parser.add_argument("--fn", help="only the benchmark of this name")
    parser.add_argument("--label", help="store the results under this name")
    parser.add_argument("--fail_if_regression", action="store_true", help="exit code 1 where a row became slower")
    parser.add_argument("--compare", metavar="LABEL,LABEL", help="stored results to stand beside")
    parser.add_argument("--omit-baselines", action="store_true", help=f"without {', '.join(BASELINES)}")
    parser.add_argument("--quick", action="store_true", help="three samples of a call each, to see that all runs")
    return parser


def benchmark_main_helper(
    benchmark_fn: Callable[..., Iterable[Timer]],
    cases: Iterable[Mapping[str, Any]],
    arg_parser: argparse.ArgumentParser | None = None,
    **kwargs: Any,
) -> None:
    """Runs `benchmark_fn(**case)` for all cases as the options of the command line say."""
    options = (arg_parser or create_argparser()).parse_args()
    if options.fn not in (None, benchmark_fn.__name__):
        print(f"{benchmark_fn.__name__}: left out, --fn is {options.fn}")
        return
    benchmark_run_and_compare(
        benchmark_fn,
        cases,
        store_results_label=options.label,
        compare=options.compare.split(",") if options.compare else [],
        omit_baselines=options.omit_baselines,
        fail_if_regression=options.fail_if_regression,
        quick=options.quick,
        **kwargs,
    )


def benchmark_run_and_compare(
    benchmark_fn: Callable[..., Iterable[Timer]],
    cases: Iterable[Mapping[str, Any]],
    *,
    store_results_label: str | None = None,
    compare: Sequence[str] = (),
    omit_baselines: bool = False,
    fail_if_regression: bool = False,
    quick: bool = False,
    min_run_time: float = 2.0,
) -> list[dict[str, Any]]:
    """Rows of all cases: label, sub_label, description, seconds, spread, bytes (peak above what there was, on a GPU).

    The timers of a case take turns, for `min_run_time` seconds each. NotImplementedError skips a case, a lack of memory
    a timer. With a label the rows are stored in `<label>.<device>.csv` of the benchmark's folder, with pictures where
    matplotlib is installed. `compare`: labels; SystemExit(1) with fail_if_regression where a row is slower than a
    stored one, see `xformers.benchmarks`; UserError where nothing ran or nothing could be compared.
    """
    folder, device = _folder(benchmark_fn.__name__), _device_name()
    for label in (*compare, *([store_results_label] if store_results_label else [])):
        if "." in label or not label:
            raise UserError(f"the label is {label!r}, expected a name without dots.  Fix: another name")
    rows: list[dict[str, Any]] = []
    for case in cases:
        try:
            timers = [t for t in benchmark_fn(**case) if not (omit_baselines and _described(t) in BASELINES)]
        except NotImplementedError as error:
            print(f"{case}: skipped, {error or 'not implemented'}")
            continue
        rows += _measured(timers, quick, min_run_time)
    if not rows:
        raise UserError(f"{benchmark_fn.__name__}: nothing was measured.  Fix: other cases or options")
    if store_results_label:
        write_atomically(folder / f"{store_results_label}.{device}.csv", _as_csv(rows))
        _draw(rows, folder)
    slower: list[str] = []
    for label in compare:
        path = folder / f"{label}.{device}.csv"
        stored = {_name(row): _row(row) for row in _from_csv(path)}
        slower += [f"{line}, of {label}" for line in slower_rows([_row(row) for row in rows], stored)]
    for line in slower:
        print(f"slower: {line}")
    if slower and fail_if_regression:
        raise SystemExit(1)
    return rows


def benchmark_main_helper2(
    name: str,
    functions: Mapping[str, Callable[..., Any]],
    fw: bool = False,
    bw: bool = False,
    cuda_graph: bool = True,
    **kwargs: Any,
) -> None:
    """As `benchmark_main_helper`, of classes by description: built as `cls(**case, bw=bw)`, with `fw()`, `bw()`,
    `label` and `sub_label`. On a GPU the calls are replayed from a graph. NotSupportedInputError skips a class."""

    def of_case(**case: Any) -> Iterator[Timer]:
        for description, cls in functions.items():
            try:
                one = cls(**case, bw=bw)
            except NotSupportedInputError:
                continue

            def call(one: Any = one) -> None:
                if fw:
                    one.fw()
                if bw:
                    one.bw()

            run: Callable[[], object] = call
            if cuda_graph and torch.cuda.is_available():
                call()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    call()
                run = graph.replay
            words = one.label + " fw" * fw + " bw" * bw
            threads = torch.get_num_threads()
            yield Timer(
                "run()",
                globals={"run": run},
                label=words,
                sub_label=one.sub_label,
                description=description,
                num_threads=threads,
            )

    of_case.__name__ = name
    benchmark_main_helper(of_case, **kwargs)


def do_bench_cudagraph(
    fn: Callable[[], object], rep: int = 20, grad_to_none: Sequence[torch.Tensor] | None = None
) -> float:
    """Milliseconds of a call, by replaying a graph of as many as take `rep` ms. RuntimeError on the default stream."""
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        raise RuntimeError(
            "do_bench_cudagraph: this is the default stream, expected another, in which a graph can be captured.  Fix: "
            "with torch.cuda.stream(torch.cuda.Stream())."
        )

    def clear() -> None:
        for tensor in grad_to_none or ():
            tensor.grad = None

    def replayed(calls: int) -> float:
        clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                clear()
                fn()
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls

    fn()
    return replayed(max(1, int(rep / max(replayed(1), 1e-3))))


def product_dict(**kwargs: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name."""
    for chosen in itertools.product(*kwargs.values()):
        yield dict(zip(kwargs, chosen, strict=True))


def pretty_print(results: Results, title: str, units: str) -> None:
    """A table in Markdown."""
    series = list(dict.fromkeys(name for row in results.values() for name in row))
    print(f"{title}\n| {units} | {' | '.join(series)} |\n{'|---' * (len(series) + 1)}|")
    for along, row in results.items():
        print(f"| {along} | {' | '.join(f'{row[name]:.3g}' if name in row else '-' for name in series)} |")


def pretty_plot(
    results: Results, title: str, units: str, filename: str | None = None, dash_key: str = "", legend_loc: str = "best"
) -> None:
    """Lines; those whose name has `dash_key` are dashed. The file's name is the title's where none is given."""
    _picture(results, title, units, filename, dash_key, legend_loc, bars=False)


def pretty_barplot(
    results: Results, title: str, units: str, filename: str | None = None, dash_key: str = "", legend_loc: str = "best"
) -> None:
    """Bars; those whose name has `dash_key` are hatched."""
    _picture(results, title, units, filename, dash_key, legend_loc, bars=True)


def rmf(filename: str | Path) -> None:
    """Removes a file, if it is there."""
    Path(filename).unlink(missing_ok=True)


@contextmanager
def temp_files_ctx(num: int) -> Iterator[list[str]]:
    """Names of `num` empty files, which are removed at the end."""
    handles = [tempfile.mkstemp() for _ in range(num)]
    for handle, _ in handles:
        os.close(handle)
    try:
        yield [name for _, name in handles]
    finally:
        for _, name in handles:
            rmf(name)


def _folder(name: str) -> Path:
    cache = os.environ.get("XFORMERS_BENCHMARKS_CACHE") or Path.home() / ".cache" / "xformers" / "benchmarks"
    return Path(cache) / name


def _device_name() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return "".join(c if c.isalnum() else "_" for c in name)


def _described(timer: Timer) -> str:
    return str(timer._task_spec.description)


def _measured(timers: Sequence[Timer], quick: bool, min_run_time: float) -> list[dict[str, Any]]:
    """Prints and returns a row for each timer that has memory enough."""
    sides: dict[str, Callable[[int], float]] = {}
    specs, peaks = {}, {}
    for i, timer in enumerate(timers):
        spec = timer._task_spec
        key = str(i)
        try:
            peaks[key] = _peak(timer)
        except (torch.OutOfMemoryError, MemoryError) as error:
            print(f"{spec.label} {spec.sub_label} {spec.description}: skipped, out of memory ({str(error)[:60]})")
            continue
        specs[key] = spec
        sides[key] = lambda calls, t=timer: float(t.timeit(calls).mean)  # type: ignore[misc]
    times = in_turns(sides, 3, 0.0 if quick else min_run_time) if sides else {}
    rows = []
    for key, seconds in times.items():
        spec = specs[key]
        row = {
            "label": str(spec.label),
            "sub_label": str(spec.sub_label),
            "description": str(spec.description),
            "seconds": float(seconds),
            "spread": seconds.spread,
            "bytes": peaks[key],
        }
        print(f"{_name(row):<60} {1e3 * seconds:.3f} ms +- {1e3 * seconds.spread:.3f}", flush=True)
        rows.append(row)
    return rows


def _peak(timer: Timer) -> int:
    if not torch.cuda.is_available():
        timer.timeit(1)
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    timer.timeit(1)
    return torch.cuda.max_memory_allocated() - before


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['label']} {row['sub_label']} {row['description']}"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """As those of a report of `_sides`."""
    side = {"seconds": float(row["seconds"]), "spread": float(row["spread"])}
    return {"name": _name(row), "sides": {row["description"]: side}}


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _from_csv(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        for row in rows:
            _row(row)
        return rows
    except (OSError, KeyError, TypeError, ValueError) as error:
        there = ", ".join(sorted(p.name.partition(".")[0] for p in path.parent.glob("*.csv"))) or "none"
        raise UserError(f"{path}: {error!r}, expected stored results.  Fix: a label that is there: {there}") from error


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    for filename, column, units in (("runtime.png", "seconds", "s"), ("mem.png", "bytes", "bytes")):
        results: dict[str, dict[str, float]] = {}
        for row in rows:
            results.setdefault(f"{row['label']} {row['sub_label']}", {})[row["description"]] = float(row[column])
        _picture(results, folder.name, units, str(folder / filename), "", "best", bars=True)


def _picture(
    results: Results, title: str, units: str, filename: str | None, dash_key: str, legend_loc: str, bars: bool
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{title}: no picture, matplotlib is not installed")
        return
    series = list(dict.fromkeys(name for row in results.values() for name in row))
    figure = Figure(figsize=(max(6, 0.8 * len(results) * (len(series) if bars else 1)), 5), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(series):
        there = [(x, row[name]) for x, row in enumerate(results.values()) if name in row]
        xs, ys = [x for x, _ in there], [y for _, y in there]
        marked = bool(dash_key) and dash_key in name
        if bars:
            width = 0.8 / len(series)
            axes.bar([x + i * width for x in xs], ys, width, label=name, hatch="//" if marked else None)
        else:
            axes.plot(xs, ys, "--o" if marked else "-o", label=name)
    axes.set_xticks(range(len(results)), list(results), rotation=30, ha="right")
    axes.set(title=title, ylabel=units)
    axes.legend(loc=legend_loc)  # type: ignore[call-overload,unused-ignore]
    figure.savefig(filename or f"{title.replace(' ', '_')}.png")


__all__ = [
    "DTYPE2STR",
    "NotSupportedInputError",
    "Seconds",
    "benchmark_main_helper",
    "benchmark_main_helper2",
    "benchmark_run_and_compare",
    "create_argparser",
    "do_bench_cudagraph",
    "pretty_barplot",
    "pretty_plot",
    "pretty_print",
    "product_dict",
    "rmf",
    "temp_files_ctx",
]
