"""Sequence parallelism: all-gather and products, products and reduce-scatter, fused and not, beside what bounds them.

Starts a process per rank: with NCCL where there are as many GPUs, else with Gloo on the CPU. Times are medians on the
slowest rank; every round takes the ways in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xformers.helpers.training import program, write_json
from xformers.ops import fused_allgather_and_linear, fused_linear_and_reducescatter
from xformers.ops.differentiable_collectives import gather_along_first_dim, reduce_scatter_along_first_dim

# tokens and inner features of a number of ranks, outer features, matrices of ag
SCENARIOS: dict[str, Callable[[int], tuple[int, int, int, int]]] = {
    "llama_07B_MHA": lambda ranks: (8 * 4096, 4096 // ranks, 4096, 3),
    "llama_07B_FFN": lambda ranks: (8 * 4096, 11008 // ranks, 4096, 2),
    "llama_70B_MHA": lambda ranks: (ranks * 2048, 8192 // ranks, 8192, 3),
    "llama_70B_FFN": lambda ranks: (ranks * 2048, 22016 // ranks, 8192, 2),
    "smoke": lambda ranks: (ranks * 16, 24, 32, 2),
}
STRIPES = 2


def ways_of(options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    group, ranks = dist.group.WORLD, options.world_size
    assert group is not None
    tokens, inner, outer, matrices = SCENARIOS[options.scenario](ranks)
    factory: dict[str, Any] = {"device": device, "dtype": getattr(torch, options.dtype)}
    if options.step == "ag":
        x = torch.randn(tokens // ranks, outer, **factory)
        weights = [torch.randn(inner, outer, **factory) for _ in range(matrices)]
        gathered = gather_along_first_dim(x, process_group=group)

        def products() -> Any:
            return [gathered @ w.T for w in weights]

        def communication() -> Any:
            return gather_along_first_dim(x, process_group=group)

        def apart() -> Any:
            whole = gather_along_first_dim(x, process_group=group)
            return [whole @ w.T for w in weights]

        def fused(**private: Any) -> Any:
            return fused_allgather_and_linear(x, weights, group=group, num_stripes=STRIPES, **private)
    else:
        x = torch.randn(tokens, inner, **factory)
        weight = torch.randn(outer, inner, **factory)
        summands = x @ weight.T

        def products() -> Any:  # with the local sum
            return (x @ weight.T).unflatten(0, (ranks, -1)).float().sum(0).to(x.dtype)

        def communication() -> Any:
            return reduce_scatter_along_first_dim(summands, process_group=group)

        def apart() -> Any:
            return [reduce_scatter_along_first_dim(x @ weight.T, process_group=group)]

        def fused(**private: Any) -> Any:
            return [fused_linear_and_reducescatter(x, weight, group=group, num_stripes=STRIPES, **private)]

    return {
        "products": products,
        "communication": communication,
        "collectives, then products": apart,
        "fused": fused,
        "fused without waits": lambda: fused(_wait=False),
        "fused without waits and copies": lambda: fused(_wait=False, _memcpy=False),
    }


def run_rank(rank: int, options: argparse.Namespace, folder: str, on_gpu: bool) -> None:
    """All rounds of one rank; rank 0 prints and writes."""
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=store, rank=rank, world_size=options.world_size)
    torch.manual_seed(rank)
    ways = ways_of(options, device)
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)  # the same on all ranks
    profiler = torch.profiler.profile() if options.profile and rank == 0 else contextlib.nullcontext()

    def synchronize() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    with profiler:
        for _ in range(options.num_rounds):
            names = list(ways)
            order.shuffle(names)
            for name in names:
                for _ in range(options.num_warmup_iters):
                    ways[name]()
                synchronize()
                dist.barrier()
                begin = time.perf_counter()
                for _ in range(options.num_bench_iters):
                    ways[name]()
                synchronize()
                rounds[name].append((time.perf_counter() - begin) / options.num_bench_iters)
    same = all(
        torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02 * float(b.float().abs().max()))
        for a, b in zip(ways["fused"](), ways["collectives, then products"](), strict=True)
    )
    mine = torch.tensor([statistics.median(times) for times in rounds.values()] + [float(same)], device=device)
    everybody = [torch.empty_like(mine) for _ in range(options.world_size)]
    dist.all_gather(everybody, mine)
    seconds = torch.stack(everybody).amax(0).tolist()[:-1]
    same = all(bool(t[-1]) for t in everybody)
    if rank == 0:
        print(f"{options.scenario} {options.step} {options.dtype}, {options.world_size} ranks, {device.type}")
        for name, value in zip(ways, seconds, strict=True):
            print(f"  {name:<32}{1e6 * value:10.1f} us")
        print(f"  fused equals the collectives: {'yes' if same else 'NO'}")
        if options.profile:
            profiler.export_chrome_trace(f"{options.scenario}_{options.step}.json")  # type: ignore[union-attr]
        if options.json:
            rows = dict(zip(ways, seconds, strict=True))
            about = {"ranks": options.world_size, "device": device.type, "dtype": options.dtype, "same": same}
            name = f"{options.scenario} {options.step}"
            write_json(Path(options.json), {"name": name, **about, "seconds": rows})
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=list(SCENARIOS), help="sizes, by model")
    parser.add_argument("step", choices=["ag", "rs"], help="all-gather and products, or product and reduce-scatter")
    parser.add_argument("--world-size", type=int, default=8, help="processes")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--num-rounds", type=int, default=20)
    parser.add_argument("--num-warmup-iters", type=int, default=5)
    parser.add_argument("--num-bench-iters", type=int, default=50)
    parser.add_argument("--profile", action="store_true", help="leave a trace of rank 0, SCENARIO_STEP.json")
    parser.add_argument("--json", metavar="FILE", help="where to write the medians")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= options.world_size
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (options, folder, on_gpu), options.world_size)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    program(main)
