"""What ranks do in the tests of context parallelism; references are one attention over the whole sequence, in fp64."""

import math
import os
import pickle
import time

import pytest
import torch
from parallel_ranks import randoms

from xformers.ops import fmha, memory_efficient_attention, memory_efficient_attention_forward_requires_grad
from xformers.ops.context_parallel import (
    context_parallel_attention,
    context_parallel_attention_with_lse,
    plan_context_parallel,
    shard,
    unshard,
)

ab = fmha.attn_bias
LENGTHS = [5, 0, 17, 1, 8]  # of documents


def on(group, heads=(3,)):
    of_keys = {"num_heads_kv": heads[0]} if len(heads) == 2 else {}
    return {"process_group": group, "num_heads": math.prod(heads), "head_dim": 8, **of_keys}


def biases():
    packed = ab.BlockDiagonalMask.from_seqlens(LENGTHS)
    return {
        "none": (None, 23),
        "causal": (ab.LowerTriangularMask(), 23),
        "bottom_right": (ab.LowerTriangularFromBottomRightMask(), 8),
        "window": (ab.LocalAttentionFromBottomRightMask(4, 2), 30),
        "causal_window": (ab.LowerTriangularFromBottomRightLocalAttentionMask(3), 31),
        "packed": (packed, sum(LENGTHS)),
        "packed_causal": (packed.make_causal(), sum(LENGTHS)),
        "packed_window": (packed.make_causal().make_local_attention(4), sum(LENGTHS)),
        "short": (ab.LowerTriangularMask(), 1),
    }


def attention(group, name, layout, dtype=torch.float64, heads=(3,), compiled=False, **options):
    """Results, log-sum-exp and gradients are rows of those of one device."""
    bias, seqlen = biases()[name]
    batch = 1 if "packed" in name else 2
    heads_of_keys = (*heads[:-1], 1) if len(heads) == 2 else heads
    q = randoms((batch, seqlen, *heads, 8), torch.float64, 0)
    k, v = (randoms((batch, seqlen, *heads_of_keys, 8 - 2 * i), torch.float64, 1 + i) for i in range(2))
    q, k, v = (t.to(dtype).double() for t in (q, k, v))
    grad = randoms((batch, seqlen, *heads, 6), torch.float64, 3).to(dtype).double()

    def wide(t):
        return t.expand(*t.shape[:3], heads[-1], t.shape[-1]) if len(heads) == 2 else t

    whole = [t.clone().requires_grad_() for t in (q, k, v)]
    arguments = whole[0], wide(whole[1]), wide(whole[2]), bias
    expected = memory_efficient_attention(*arguments)
    _, expected_lse = memory_efficient_attention_forward_requires_grad(*(t.detach() for t in arguments[:3]), bias)
    grads = torch.autograd.grad(expected, whole, grad)

    plan = plan_context_parallel(bias, seqlen, **on(group, heads), layout=layout, **options)
    assert plan == pickle.loads(pickle.dumps(plan)) and sum(plan.seqlens) == seqlen
    assert plan.seqlens[group.rank()] == len(plan.positions) and str(plan).count("rank ") == group.size()
    mine = [shard(t, plan).to(dtype).requires_grad_() for t in (q, k, v)]
    assert torch.equal(mine[0], q[:, plan.positions].to(dtype))

    def f(q, k, v):
        return context_parallel_attention_with_lse(q, wide(k), wide(v), plan=plan)

    run = torch.compile(f, fullgraph=True, backend="aot_eager") if compiled else f
    out, lse = run(*mine)
    got = torch.autograd.grad(out, mine, shard(grad, plan).to(dtype))
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert out.dtype == dtype and torch.allclose(out.double(), expected[:, plan.positions], **tolerance)
    assert torch.allclose(lse.double(), expected_lse.double()[..., plan.positions], **tolerance)
    for one, other in zip(got, grads, strict=True):
        assert torch.allclose(one.double(), other[:, plan.positions], **tolerance)


def low_precision(group, **options):
    """The error against fp64 is at most 1.25 times that of the same kernel on one device, and its last place."""
    bias, seqlen = ab.LowerTriangularMask(), 256
    q, k, v, grad = (randoms((1, seqlen, 2, 32), torch.bfloat16, i) for i in range(4))

    def results(dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = memory_efficient_attention(*inputs, bias)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype))]

    exact, one_device = results(torch.float64), results(torch.bfloat16)
    plan = plan_context_parallel(bias, seqlen, **{**on(group), "num_heads": 2}, **options)
    mine = [shard(t, plan).requires_grad_() for t in (q, k, v)]
    out = context_parallel_attention(*mine, plan=plan)
    got = [out.detach(), *torch.autograd.grad(out, mine, shard(grad, plan))]
    for mine_, whole, one in zip(got, exact, one_device, strict=True):
        error = (unshard(mine_, plan).double() - whole).square().mean().sqrt()
        assert error <= 1.25 * (one.double() - whole).square().mean().sqrt()


def gradient_of_lse(group, **options):
    bias, seqlen = ab.LowerTriangularMask(), 11
    q, k, v = (randoms((1, seqlen, 2, 4), torch.float64, i) for i in range(3))
    plan = plan_context_parallel(bias, seqlen, **{**on(group), "num_heads": 2}, **options)
    mine = [shard(t, plan).requires_grad_() for t in (q, k, v)]
    out, lse = context_parallel_attention_with_lse(*mine, plan=plan)
    got = torch.autograd.grad(out.sum() + lse.sin().sum(), mine)
    whole = [t.clone().requires_grad_() for t in (q, k, v)]
    scores = torch.einsum("bqhd,bkhd->bhqk", whole[0], whole[1]) / 2
    scores = scores.masked_fill(~torch.ones(seqlen, seqlen, dtype=torch.bool).tril(), -torch.inf)
    loss = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), whole[2]).sum() + scores.logsumexp(-1).sin().sum()
    for one, other in zip(got, torch.autograd.grad(loss, whole), strict=True):
        assert torch.allclose(one, other[:, plan.positions], rtol=1e-9, atol=1e-12)


def die_in_a_ring(group):
    """The last rank dies; the others' errors and how long they took."""
    plan = plan_context_parallel(ab.LowerTriangularMask(), 24, **on(group), method="ring", layout="zigzag")
    x = shard(randoms((1, 24, 3, 8), torch.float32, 0), plan)
    context_parallel_attention(x, x, x, plan=plan)
    if group.rank() == group.size() - 1:
        os._exit(1)
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        for _ in range(2):
            context_parallel_attention(x, x, x, plan=plan)
    return str(error.value), time.monotonic() - begin


def sharding(group):
    plan = plan_context_parallel(ab.LowerTriangularMask(), 21, **on(group), layout="zigzag")
    x = randoms((2, 21, 3), torch.float64, 0).requires_grad_()
    mine = shard(x, plan)
    assert torch.equal(unshard(mine, plan), x)
    (dx,) = torch.autograd.grad(mine, x, mine.detach())  # the gradient of all ranks' rows
    assert torch.equal(dx, x)
    labels = torch.arange(21)
    assert torch.equal(shard(labels, plan, dim=0), plan.positions)
    assert torch.equal(unshard(plan.positions, plan, dim=-1), labels)
    rows = mine.detach().requires_grad_()
    (drows,) = torch.autograd.grad(unshard(rows, plan), rows, x.detach())
    assert torch.equal(drows, mine)
    torch.library.opcheck(torch.ops.xformers.context_shard, (x, plan.problem, plan.group_name))


def refused(group):
    padded = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 4, [3, 4])
    for bias, seqlen, message in (
        (torch.zeros(5, 5), 5, "attn_bias is a Tensor, expected None, a band, or packed"),
        (ab.LowerTriangularMask().add_bias(torch.zeros(1, 1, 5, 5)), 5, "attn_bias is a "),
        (padded, 5, "attn_bias is a "),
        (ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 5]), 5, "other lengths of keys"),
        (ab.BlockDiagonalMask.from_seqlens([2, 3]), 6, "attn_bias is of 5 tokens, expected 6"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_context_parallel(bias, seqlen, **on(group))
    with pytest.raises(ValueError, match="method is 'gossip', expected"):
        plan_context_parallel(None, 5, **on(group), method="gossip")
    with pytest.raises(ValueError, match="head_ranks is 2, expected a divisor"):
        plan_context_parallel(None, 5, **on(group), head_ranks=2)
    few = {**on(group), "num_heads": group.size() - 1}
    with pytest.raises(ValueError, match="method is 'ulysses', of 1 heads on 2 ranks, expected a head or more"):
        plan_context_parallel(None, 5, **few, method="ulysses")
    with pytest.raises(ValueError, match="num_heads is 3, expected a multiple of num_heads_kv, 2"):
        plan_context_parallel(None, 5, **on(group), num_heads_kv=2)
    plan = plan_context_parallel(None, 4, **on(group), method="ulysses")
    x = torch.ones(1, 2, 1, 4)
    with pytest.raises(ValueError, match="query is .*, expected 2 heads or more"):
        context_parallel_attention(x, x, x, plan=plan)
    with pytest.raises(ValueError, match="layout is 'spiral', expected"):
        plan_context_parallel(None, 5, **on(group), layout="spiral")
    plan = plan_context_parallel(None, 8, **on(group))
    x = torch.ones(1, plan.seqlens[group.rank()] + 1, 2, 4)
    with pytest.raises(ValueError, match=r"query.size\(1\), the number of tokens is"):
        context_parallel_attention(x, x, x, plan=plan)
    x = x[:, 1:]
    with pytest.raises(NotImplementedError, match="p is given, expected 0.0"):
        context_parallel_attention(x, x, x, p=0.1, plan=plan)
    with pytest.raises(NotImplementedError, match="attn_bias is given"):
        context_parallel_attention(x, x, x, torch.zeros(1), plan=plan)
