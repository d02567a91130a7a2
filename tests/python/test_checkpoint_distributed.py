"""Checkpointing in two processes over Gloo: DDP, FSDP2, and one policy for all ranks."""

import copy
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gloo_process import leave
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from xformers.checkpoint import checkpoint, fit_to_memory, selective_checkpoint_wrapper

from xformers.ops import SwiGLU


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.feed_forward, self.out = nn.LayerNorm(16), SwiGLU(16, 24), nn.Linear(16, 16)
        self.act = nn.CELU(inplace=True)

    def forward(self, x):
        return x + self.act(self.out(self.feed_forward(self.norm(x))))


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(3)))


def gradients(module, x):
    """Of two steps, whole: the second meets policies that were found in the first."""
    for _ in range(2):
        module.zero_grad()
        module(x).square().mean().backward()
    grads = [p.grad for p in module.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


def wrapped(module, how):
    for i, block in enumerate(module):
        module[i] = selective_checkpoint_wrapper(block, **how)
    return module


class Inside(nn.Module):
    """Calls a sharded module in a region: its hooks gather weights in the forward pass, perhaps not in the other."""

    def __init__(self, inner, policy):
        super().__init__()
        self.inner, self.policy = inner, policy

    def forward(self, x):
        return checkpoint(self.inner, x, policy_fn=self.policy)


WAYS = {
    "products": {"policy_fn": ["aten.mm.default", "aten.addmm.default"]},
    "nothing": {"policy_fn": []},
    "budget": {"memory_budget": 0.5},
}


def compare(rank, world_size, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(10 + rank)
    x = torch.randn(4, 16)
    mesh = torch.distributed.init_device_mesh("cpu", (world_size,))

    def sharded(module):
        for block in module:
            fully_shard(block, mesh=mesh)
        return fully_shard(module, mesh=mesh)

    for parallel in (DistributedDataParallel, sharded):
        expected = gradients(parallel(model()), x)
        for name, how in WAYS.items():
            got = gradients(parallel(wrapped(model(), how)), x)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), (parallel, name)
    for policy in (None, [], lambda *args, **kwargs: True):
        module = sharded(model())
        got = gradients(nn.Sequential(*(Inside(block, policy) for block in module)), x)
        assert all(torch.equal(a, b) for a, b in zip(got, gradients(sharded(model()), x), strict=True)), policy

    # What ranks measure differs; the policies do not.
    module = wrapped(model(), {"memory_budget": 0.4})
    module(x).sum().backward()
    kept = [None] * world_size
    dist.all_gather_object(kept, [block.policy_fn.kept for block in module])
    assert all(one == kept[0] for one in kept)

    module, x = model(), torch.randn(256, 16)
    everything = fit_to_memory(copy.deepcopy(module), ["0", "1"], x, peak_bytes=1 << 30)
    peak = (everything.least_bytes + everything.most_bytes) // 2
    report = fit_to_memory(module, ["0", "1"], x, peak_bytes=peak)
    peaks = [None] * world_size
    dist.all_gather_object(peaks, (report.measured_bytes, [str(r) for r in report.blocks.values()]))
    assert report.measured_bytes <= peak and all(one == peaks[0] for one in peaks)
    leave()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes():
    mp.spawn(compare, args=(2, free_port()), nprocs=2)
