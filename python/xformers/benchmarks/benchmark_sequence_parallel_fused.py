"""Linear layers whose input is gathered from all ranks, or whose output is added up over them, in parts beside the
products, and the collective first (or last) and one product. Starts its processes itself."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from xformers.helpers.training import UserError, program
from xformers.ops import fused_allgather_and_linear, fused_linear_and_reducescatter

from ._sides import Seconds, parser_of, report_of, seconds_of

SHAPES = [(1024, 1024, 1024), (4096, 1024, 1024)]  # tokens of all ranks, inputs, outputs of a rank


def measured(rank: int, world: int, store: str, options: argparse.Namespace) -> list[tuple[str, dict[str, Seconds]]]:
    """Rows of one process; every process measures them, so that all take part."""
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    group = dist.group.WORLD
    assert group is not None
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    rows = []
    for tokens, inputs, outputs in [(16, 8, 8)] if options.smoke else SHAPES:
        part, weight = torch.randn(tokens // world, inputs, **factory), torch.randn(outputs, inputs, **factory)
        whole = torch.randn(tokens, inputs, **factory)

        def gather_fused(x: torch.Tensor = part, w: torch.Tensor = weight) -> object:
            return fused_allgather_and_linear(x, w, group=group)

        def gather_first(x: torch.Tensor = part, w: torch.Tensor = weight) -> object:
            gathered = x.new_empty(world * x.shape[0], x.shape[1])
            dist.all_gather_into_tensor(gathered, x, group=group)
            return gathered @ w.t()

        def scatter_fused(x: torch.Tensor = whole, w: torch.Tensor = weight) -> object:
            return fused_linear_and_reducescatter(x, w, group=group)

        def scatter_last(x: torch.Tensor = whole, w: torch.Tensor = weight) -> object:
            product = x @ w.t()
            out = product.new_empty(product.shape[0] // world, product.shape[1])
            dist.reduce_scatter_tensor(out, product, group=group)
            return out

        size = f"{tokens} x {inputs} x {outputs}, {world} ranks"
        for name, sides in (
            ("all-gather, linear", {"fused": gather_fused, "one after the other": gather_first}),
            ("linear, reduce-scatter", {"fused": scatter_fused, "one after the other": scatter_last}),
        ):
            # As many calls on all ranks, or they would wait for each other for ever.
            rows.append((f"{name} {size}", seconds_of(sides, options.samples, calls=options.calls)))
    dist.destroy_process_group()
    return rows


def _process(rank: int, world: int, folder: str, options: argparse.Namespace) -> None:
    rows = measured(rank, world, f"{folder}/store", options)
    if rank == 0:
        plain = [(name, {side: (float(s), s.spread) for side, s in times.items()}) for name, times in rows]
        torch.save(plain, f"{folder}/rows")


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--world_size", type=int, default=2, help="processes; on GPUs one each")
    parser.add_argument("--calls", type=int, default=3, help="of a sample")
    options = parser.parse_args(arguments)
    world = options.world_size
    if world < 1 or (options.device.startswith("cuda") and world > torch.cuda.device_count()):
        raise UserError(f"--world_size is {world}, expected 1 to {torch.cuda.device_count()} GPUs.  Fix: --device cpu")
    with report_of(options) as report, tempfile.TemporaryDirectory() as folder:
        spawn(_process, (world, folder, options), nprocs=world)
        rows: list[tuple[str, dict[str, Any]]] = torch.load(Path(folder) / "rows", weights_only=True)
        for name, times in rows:
            seconds = {}
            for side, (median, spread) in times.items():
                seconds[side] = Seconds(median)
                seconds[side].spread = spread
            report.row(name, seconds)


if __name__ == "__main__":
    program(main)
