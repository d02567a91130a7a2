"""Sequence parallelism on 2, 3 and 4 processes with Gloo: results, gradients, layers, pipes, bad input."""

import parallel_ranks as ranks
import pytest
import torch
from pool import pool

SIZES = [2, 3, 4]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", ranks.KINDS)
@pytest.mark.parametrize("dims", ranks.DIMS, ids=["even", "odd"])
def test_matmuls(dims, kind):
    for dtype in DTYPES:
        pool(2).run(ranks.seqpar_matmuls, dims, dtype, kind)


@pytest.mark.parametrize("dims", ranks.DIMS, ids=["even", "odd"])
@pytest.mark.parametrize("kind", ["fallback", "fused"])
def test_fused_linears(dims, kind):
    for dtype in DTYPES:
        pool(2).run(ranks.fused_linears, dims, dtype, kind)


@pytest.mark.parametrize("size", [3, 4])
def test_more_ranks(size):
    for kind in ranks.KINDS:
        pool(size).run(ranks.seqpar_matmuls, (size, 7, 64, 48), torch.bfloat16, kind)
        pool(size).run(ranks.anything, kind)
    pool(size).run(ranks.fused_linears, (size, 7, 64, 48), torch.float32, "fused")


def test_compiled():
    pool(2).run(ranks.seqpar_matmuls, (2, 3, 16, 8), torch.float32, "fused", compiled=True)
    pool(2).run(ranks.fused_linears, (2, 3, 16, 8), torch.float32, "fused", compiled=True)
    pool(2).run(ranks.layers, False, compiled=True)
    pool(2).run(ranks.layers, True, compiled=True)


@pytest.mark.parametrize("kind", ["fallback", "fused"])
def test_fp8(kind):
    pool(2).run(ranks.fp8, kind)


@pytest.mark.parametrize("kind", ["fallback", "fused"])
def test_anything(kind):
    pool(2).run(ranks.anything, kind)


def test_anything_that_raises():
    pool(3).run(ranks.anything_raises)


def test_sums_are_rounded_once():
    pool(3).run(ranks.numbers)


def test_operators():
    pool(2).run(ranks.checks)


@pytest.mark.parametrize("size", [2, 3])
def test_bad_input(size):
    pool(size).run(ranks.bad_input)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_call_differently(size):
    pool(size).run(ranks.different_calls)


@pytest.mark.parametrize("size", SIZES)
def test_collectives(size):
    pool(size).run(ranks.collectives_and_gradients)


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "shards"])
@pytest.mark.parametrize("size", SIZES)
def test_layers(size, sequence_parallel):
    pool(size).run(ranks.layers, sequence_parallel)


@pytest.mark.parametrize("size", [2, 3])
def test_layers_that_gather(size):
    pool(size).run(ranks.layers_that_gather)


def test_weights_do_not_depend_on_the_number_of_ranks():
    states = [state for size in SIZES for state in pool(size).run(ranks.whole_weights, 5)]
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("size", [2, 3])
def test_pipes(size):
    pool(size).run(ranks.pipes)
