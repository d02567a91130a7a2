"""The same on two GPUs over NCCL."""

import context_ranks
import parallel_ranks as ranks
import pytest
import torch
from devices import needs_two_cuda
from pool import Pool

pytestmark = needs_two_cuda


@pytest.fixture(scope="module")
def gpus():
    workers = Pool(2, backend="nccl")
    yield workers
    workers.end()


@pytest.mark.parametrize("kind", ranks.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matmuls(gpus, dtype, kind):
    for dims in ranks.DIMS:
        gpus.run(ranks.seqpar_matmuls, dims, dtype, kind)
        gpus.run(ranks.fused_linears, dims, dtype, kind)


@pytest.mark.parametrize("kind", ["fallback", "fused"])
def test_anything(gpus, kind):
    gpus.run(ranks.anything, kind)


def test_collectives(gpus):
    gpus.run(ranks.collectives_and_gradients)


def test_fp8(gpus):
    gpus.run(ranks.fp8, "fused")


@pytest.mark.parametrize("method", ["all_gather", "ring", "ulysses"])
def test_context(gpus, method):
    gpus.run(context_ranks.attention, "causal", "auto", heads=(2, 3), method=method)
