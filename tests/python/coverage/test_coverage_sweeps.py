"""Sizes, layouts and strides that every operator meets: section 2 of the coverage list, at sizes a CPU likes."""

import random as pick

import pytest
import torch
from attention_inputs import qkv, random, with_strides
from attention_reference import check_attention
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

OPS = {"None": None, "cutlass": (fmha.cutlass.FwOp, fmha.cutlass.BwOp), "flash": (fmha.flash.FwOp, fmha.flash.BwOp)}


def check(query, key, value, op=None, bias=None):
    seen = bias.materialize((query.shape[1], key.shape[1])) if bias is not None else None
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, bias, op=op), query, key, value, bias=seen)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("nk", [32, 64, 256, 1024])
@pytest.mark.parametrize("nq", [32, 256])
def test_even_lengths(nq, nk, op):
    check(*qkv(batch=1, nq=nq, nk=nk, heads=(1,), head_dim=32, dtype=torch.float16), op)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("m", [2, 3, 15, 31, 32, 34, 68, 72, 90, 132, 136])
def test_odd_lengths(m, causal):
    bias = ab.LowerTriangularMask() if causal else None
    for nq, nk in ((m, m), (m, 33), (17, m)):
        for dtype in (torch.float32, torch.bfloat16):
            check(*qkv(batch=1, nq=nq, nk=nk, heads=(2,), head_dim=16, dtype=dtype), bias=bias)


@pytest.mark.parametrize("nq, nk", [(16, 1024), (1024, 16)])
def test_uneven_lengths(nq, nk):
    check(*qkv(batch=1, nq=nq, nk=nk, heads=(1,), head_dim=32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 2, 3, 31, 34, 36, 38, 40, 64, 80, 128, 160, 256, 258, 264, 512])
def test_head_dims(head_dim, dtype):
    check(*qkv(batch=1, nq=9, nk=35, heads=(2,), head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("head_dim, head_dim_v", [(32, 36), (36, 32), (64, 264), (264, 64)])
def test_value_of_its_own_head_dim(head_dim, head_dim_v):
    for op in (None, OPS["cutlass"]):
        check(*qkv(batch=1, nq=9, nk=35, heads=(2,), head_dim=head_dim, head_dim_v=head_dim_v), op)


@pytest.mark.parametrize("heads", [1, 3, 5, 12])
@pytest.mark.parametrize("batch", [1, 12, 300])
def test_batches_and_heads(batch, heads):
    check(*qkv(batch=batch, nq=3, nk=5, heads=(heads,), head_dim=8))


def test_random_shapes():
    """200 shapes, batch to 400, lengths to 500, each of at most some 30 thousand scores."""
    rng = pick.Random(0)
    for index in range(200):
        nq, nk, heads = rng.randint(1, 500), rng.randint(1, 500), rng.randint(1, 11)
        batch = max(1, min(rng.randint(1, 400), 30_000 // (nq * nk * heads)))
        nq = max(1, min(nq, 30_000 // (nk * heads)))
        head_dim = 8 * rng.randint(1, 31)
        query, key, value = qkv(batch, nq, nk, (heads,), head_dim, requires_grad=index % 4 == 0, seed=index)
        query, key, value = (3 * x.detach() for x in (query, key, value)) if index % 4 else (query, key, value)
        check(query, key, value)


BIG = [(1, 128, 128, 300, 128), (13, 1, 67, 200, 8), (1, 65537, 4, 1, 8), (1, 4, 65537, 1, 8)]


@pytest.mark.parametrize("batch, nq, nk, heads, head_dim", BIG)
def test_big_dimensions(batch, nq, nk, heads, head_dim):
    check(*qkv(batch, nq, nk, (heads,), head_dim, requires_grad=heads < 300))


@pytest.mark.parametrize("strides", ["packed", "heads_first", "wide", "reversed_batch"])
@pytest.mark.parametrize("heads", [(), (3,), (2, 3)], ids=["BMK", "BMHK", "BMGHK"])
def test_layouts(heads, strides):
    check(*qkv(nq=13, nk=19, heads=heads, head_dim=24, strides=(strides,) * 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_inputs(dtype):
    """Inputs of three standard deviations, and a bias whose first rows and columns are -inf."""
    query, key, value = (3 * x.detach() for x in qkv(nq=40, nk=70, head_dim=32, dtype=dtype))
    bias = random((2, 3, 40, 70), dtype, seed=6)
    bias[:, :, :5, :9] = -torch.inf
    check_attention(memory_efficient_attention, query, key, value, tensor_bias=bias)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("lengths", [([2, 0, 3], [4, 5, 0]), ([0, 0], [3, 4]), ([3, 4], [0, 0]), ([], [])], ids=str)
def test_empty_members_of_a_batch(lengths, op):
    q_lengths, k_lengths = lengths
    bias = ab.BlockDiagonalMask.from_seqlens(q_lengths, k_lengths)
    inputs = qkv(batch=1, nq=sum(q_lengths), nk=sum(k_lengths), head_dim=32, dtype=torch.float16)
    check(*inputs, op, bias)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("batch, nq, nk", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_inputs(batch, nq, nk, op):
    inputs = qkv(batch=batch, nq=nq, nk=nk, head_dim=32, dtype=torch.float16)
    out = memory_efficient_attention(*inputs, op=op)
    assert out.shape == inputs[0].shape and (out == 0).all()
    for x, grad in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert grad.shape == x.shape and (grad == 0).all()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_surroundings_and_repetition(op):
    """NaN just outside the tensors never shows; the same call gives the same bits."""
    plain = qkv(nq=17, nk=33, head_dim=32, dtype=torch.float16)
    wide = [with_strides(x.detach(), "packed").requires_grad_() for x in plain]
    runs = []
    for inputs in (plain, wide, plain):
        out = memory_efficient_attention(*inputs, op=op)
        runs.append([out, *torch.autograd.grad(out.sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    for a, b in zip(runs[0], runs[1], strict=True):
        torch.testing.assert_close(a, b)
