"""Experts over several processes (Gloo): the same as one process with all tokens, and errors when one is gone."""

import datetime
import os
import tempfile
import time
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gloo_process import leave
from xformers.components.feedforward import MixtureOfExperts

EXPERTS, DIM, TOKENS = 4, 8, 10  # tokens of each process


def build(**options):
    torch.manual_seed(5)
    return MixtureOfExperts(
        DIM, 0.0, "gelu", EXPERTS, "top_2", hidden_layer_multiplier=2, top_k=1, capacity_factor=None, **options
    )


def one_process(x):
    layer = build()
    out = layer(x)
    out.square().sum().backward()
    return layer, out


def inputs(ranks):
    return torch.randn(ranks, 1, TOKENS, DIM, generator=torch.Generator().manual_seed(3))


def start(rank, ranks, folder, seconds=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=seconds),
    )


def compare(rank, ranks, folder):
    x = inputs(ranks)
    whole, expected = one_process(x.reshape(1, -1, DIM))
    start(rank, ranks, folder)
    with pytest.raises(AssertionError, match=f"number_of_experts is 4, expected {3 * ranks}, 3 for each of {ranks}"):
        build(number_of_local_experts=3)
    layer = build(number_of_local_experts=EXPERTS // ranks)
    first = rank * EXPERTS // ranks
    state = {"gate.wg.weight": whole.gate.wg.weight, "moe.gate.wg.weight": whole.gate.wg.weight}
    for i in range(EXPERTS // ranks):
        for name, value in whole.moe.experts[first + i].state_dict().items():
            state[f"moe.experts.{i}.{name}"] = value
    layer.load_state_dict(state)
    mine = x[rank].clone().requires_grad_()
    out = layer(mine)
    assert torch.allclose(out, expected[:, rank * TOKENS : (rank + 1) * TOKENS], atol=1e-5)
    out.square().sum().backward()
    for i, expert in enumerate(layer.moe.experts):  # each has the tokens of all processes
        for one, other in zip(expert.parameters(), whole.moe.experts[first + i].parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-4)
    gate = layer.gate.wg.weight.grad.clone()
    dist.all_reduce(gate)
    assert torch.allclose(gate, whole.gate.wg.weight.grad, atol=1e-4)
    leave()


def compile_whole(rank, ranks, folder):
    """One graph, whose numbers of rows are known when it runs; no operator of it is without a gradient."""
    start(rank, ranks, folder)
    layer = build(number_of_local_experts=EXPERTS // ranks)
    x = inputs(ranks)[rank].requires_grad_()
    with torch._dynamo.config.patch(capture_scalar_outputs=True), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*autograd kernel was not registered")
        results = []
        for module in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            out = module(x)
            results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    assert all(map(torch.equal, *results))
    leave()


def test_compile_fullgraph_over_processes():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(compile_whole, (2, folder), nprocs=2)


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_equal_one(ranks):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(compare, (ranks, folder), nprocs=ranks)


def die_or_fail(rank, ranks, folder):
    start(rank, ranks, folder, seconds=10)
    layer, x = build(number_of_local_experts=EXPERTS // ranks), inputs(ranks)[rank]
    layer(x)
    if rank == 1:
        os._exit(0)
    begin = time.monotonic()
    with pytest.raises(RuntimeError):
        layer(x)
    assert time.monotonic() - begin < 15
    os._exit(0)


def test_a_process_that_dies_ends_the_others_with_an_error():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(die_or_fail, (2, folder), nprocs=2)
