"""Processes that are ranks, and times that all of them agree on: medians on the slowest."""

import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _serve(rank, function, options, folder, on_gpu):
    os.environ.update(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=options.world_size,
        timeout=timedelta(seconds=300),
    )
    try:
        report = function(options, device)
        if rank == 0:
            (Path(folder) / "report.json").write_text(json.dumps(report))
    finally:
        dist.destroy_process_group()


def on_ranks(function, options):
    """What `function(options, device)` returns on rank 0: numbers, text and containers of them. GPUs where there are as
    many, else Gloo and one thread for each process."""
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= options.world_size and not options.cpu
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_serve, (function, options, folder, on_gpu), options.world_size)
        return json.loads((Path(folder) / "report.json").read_text())


def seconds_of(run, device, samples, alone=False):
    """Of a call on the slowest rank: the median. `alone`: rank 0 calls, the others wait."""
    if alone and dist.get_rank() != 0:
        samples = 0
    taken = []
    for sample in range(samples + 1 if samples else 0):
        if not alone:
            dist.barrier()
        _synchronize(device)
        begin = time.perf_counter()
        run()
        _synchronize(device)
        if sample > 0:
            taken.append(time.perf_counter() - begin)
    mine = torch.tensor([statistics.median(taken) if taken else 0.0], dtype=torch.float64, device=device)
    dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return mine.item()


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
