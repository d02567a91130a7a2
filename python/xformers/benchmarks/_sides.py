"""Several ways to compute the same, in turns on the same values; rows of a report, and which have become slower."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xformers.helpers.training import UserError, write_json

Sides = dict[str, Callable[..., torch.Tensor]]  # by name, ours first
RELATIVE, ABSOLUTE = 0.05, 30e-6  # a row is slower only beyond both of them together, and beyond its noise


class Seconds(float):
    """A median, with half the distance between the quartiles as its `spread`."""

    spread: float = 0.0

    @classmethod
    def of(cls, samples: list[float]) -> Seconds:
        seconds = cls(statistics.median(samples))
        if len(samples) > 3:
            low, _, high = statistics.quantiles(samples, n=4)
            seconds.spread = (high - low) / 2
        return seconds


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Options that all programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--samples", type=int, default=7, help="of which medians are taken")
    parser.add_argument("--smoke", action="store_true", help="one small size, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="where to write the rows")
    parser.add_argument("--compare", metavar="FILE", help="rows of an earlier run, to stand beside")
    parser.add_argument("--fail_if_regression", action="store_true", help="exit code 1 where one of ours is slower")
    return parser


class Report:
    """Rows, printed as they come."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.rows: list[dict[str, Any]] = []

    def row(self, name: str, times: Mapping[str, float], kept: Mapping[str, int] | None = None) -> None:
        """Milliseconds of each side, the speed of the first over each other, and megabytes kept for backward."""
        first = next(iter(times))
        cells = [f"{side} {1e3 * seconds:.2f} ms" for side, seconds in times.items()]
        cells += [f"{times[side] / times[first]:.2f}x {side}" for side in times if side != first]
        cells += [f"{side} keeps {size / 2**20:.1f} MiB" for side, size in (kept or {}).items()]
        print(f"{name:<44}" + "  ".join(cells), flush=True)
        sides = {
            side: {"seconds": float(seconds), "spread": getattr(seconds, "spread", 0.0)}
            for side, seconds in times.items()
        }
        self.rows.append({"name": name, "sides": sides, "kept_bytes": dict(kept or {})})

    def contents(self) -> dict[str, Any]:
        on_gpu = torch.device(self.options.device).type == "cuda"
        return {
            "program": Path(sys.argv[0]).stem,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "dtype": getattr(self.options, "dtype", None),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "rows": self.rows,
        }


def read_rows(path: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of a report by name. UserError where the file is missing or something else."""
    try:
        return {row["name"]: row for row in json.loads(Path(path).read_text())["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error!r}, expected a file of --json.  Fix: name another") from error


def slower_rows(rows: list[dict[str, Any]], stored: Mapping[str, dict[str, Any]]) -> list[str]:
    """What to say of each row whose first side, ours, takes longer than the stored one: by more than 5 % and 30 us, and
    by more than twice the spreads of both. UserError where no row is in both: nothing was compared."""
    found, matched = [], 0
    for row in rows:
        before = stored.get(row["name"])
        side = next(iter(row["sides"]))
        if before is None or side not in before["sides"]:
            continue
        matched += 1
        now, then = row["sides"][side], before["sides"][side]
        grown = now["seconds"] - then["seconds"]
        if grown > RELATIVE * then["seconds"] + ABSOLUTE and grown > 2 * (now["spread"] + then["spread"]):
            found.append(
                f"{row['name']}: {1e3 * now['seconds']:.3f} ms, stored {1e3 * then['seconds']:.3f} ms "
                f"({100 * grown / then['seconds']:+.0f} %)"
            )
    if not matched:
        raise UserError("no row of this run is in the stored one.  Fix: compare runs of the same sizes")
    return found


@contextmanager
def report_of(options: argparse.Namespace) -> Iterator[Report]:
    """Rows of a program; at the end written and compared as the options say. SystemExit(1) where one has become slower
    and --fail_if_regression is given; UserError where nothing ran."""
    report = Report(options)
    stored = read_rows(options.compare) if options.compare else None
    yield report
    if not report.rows:
        raise UserError("nothing was measured.  Fix: other options")
    if options.json:
        write_json(options.json, report.contents())
    if stored is None:
        if options.fail_if_regression:
            raise UserError("--fail_if_regression needs rows to compare with.  Fix: pass --compare")
        return
    slower = slower_rows(report.rows, stored)
    for line in slower:
        print(f"slower: {line}")
    if slower and options.fail_if_regression:
        raise SystemExit(1)


def seconds_of(sides: Mapping[str, Callable[[], object]], samples: int) -> dict[str, Seconds]:
    """Median seconds of each side, in turns, after one call."""
    for side in sides.values():
        side()
    return in_turns({name: partial(_sample, side) for name, side in sides.items()}, samples)


def in_turns(timers: Mapping[str, Callable[[int], float]], samples: int, least: float = 0.0) -> dict[str, Seconds]:
    """Of timers that give the seconds of a call, measured over a number of them: one sample of each per round, in
    rotating order, of as many calls as take 2 ms, until each has `samples` of them and `least` seconds in all."""
    calls = {name: max(1, min(1000, int(2e-3 / max(timer(1), 1e-7)))) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    while any(len(t) < samples or sum(t) * calls[name] < least for name, t in times.items()):
        turn = len(times[names[0]])
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            times[name].append(timers[name](calls[name]))
    return {name: Seconds.of(values) for name, values in times.items()}


def _sample(side: Callable[[], object], calls: int) -> float:
    _wait()
    begin = time.perf_counter()
    for _ in range(calls):
        side()
    _wait()
    return (time.perf_counter() - begin) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training_step(module: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of a module, or of a function of its inputs."""
    grads: list[torch.Tensor] = []
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []

    def step() -> None:
        out = module(*inputs)
        if not grads:
            grads.append(torch.randn_like(out))
        out.backward(grads[0])
        for tensor in (*parameters, *inputs):
            tensor.grad = None

    return step


def compiled(module: nn.Module) -> nn.Module:
    """torch.compile of it, for one shape, with the same parameters."""
    made: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return made


def forward(module: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward alone, without gradients."""

    def step() -> None:
        with torch.no_grad():
            module(*inputs)

    return step


def both_directions(
    report: Report, name: str, sides: Mapping[str, Callable[..., torch.Tensor]], *inputs: torch.Tensor
) -> None:
    """Two rows: forward, and forward with backward."""
    for words, steps in (("forward", forward), ("forward + backward", training_step)):
        times = seconds_of({side: steps(f, *inputs) for side, f in sides.items()}, report.options.samples)
        report.row(f"{name} {words}", times)


def bytes_kept(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Of activations that a forward keeps for backward: storages other than those of parameters and inputs."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *inputs)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(*inputs)
    total = sum(kept.values())
    del out
    return total
