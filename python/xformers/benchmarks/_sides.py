"""Several ways to compute the same, in turns on the same values."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Options that all programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--samples", type=int, default=7, help="of which medians are taken")
    parser.add_argument("--smoke", action="store_true", help="one small size, to see that it runs")
    return parser


def seconds_of(sides: Mapping[str, Callable[[], object]], samples: int) -> dict[str, float]:
    """Median seconds of each side; one sample of each per round, in rotating order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    names = list(sides)
    for sample in range(samples):
        for i in range(len(names)):
            name = names[(i + sample) % len(names)]
            _wait()
            begin = time.perf_counter()
            sides[name]()
            _wait()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training_step(module: nn.Module, *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward."""
    grads: list[torch.Tensor] = []

    def step() -> None:
        out = module(*inputs)
        if not grads:
            grads.append(torch.randn_like(out))
        out.backward(grads[0])
        for tensor in (*module.parameters(), *inputs):
            tensor.grad = None

    return step


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


def print_row(name: str, times: Mapping[str, float], kept: Mapping[str, int] | None = None) -> None:
    """Milliseconds of each side, the speed of the first over each other, and megabytes kept."""
    first = next(iter(times))
    cells = [f"{side} {1e3 * seconds:.2f} ms" for side, seconds in times.items()]
    cells += [f"{times[side] / times[first]:.2f}x {side}" for side in times if side != first]
    cells += [f"{side} keeps {size / 2**20:.1f} MiB" for side, size in (kept or {}).items()]
    print(f"{name:<44}" + "  ".join(cells), flush=True)
