"""Softcap, ALiBi, sinks and a bias of packed sequences against the formula (score_modifiers.py), in every layout, alone
and together."""

import math

import pytest
import torch
from attention_reference import ULP
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from score_modifiers import (
    CHOICES,
    DIM,
    FP64,
    HEADS,
    PROBLEMS,
    Problem,
    attend,
    attention_forward,
    check,
    formula,
    leaves_of,
    qkv,
    random,
    takes,
)
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

CASES = [(p, c) for p in PROBLEMS for c in CHOICES if takes(PROBLEMS[p], CHOICES[c])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [FP64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def test_formula(case, dtype, device):
    check(PROBLEMS[case[0]], dtype, device=device, **CHOICES[case[1]])


per_head = st.sampled_from([None, "heads", "sequences"])


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PROBLEMS)),
    st.sampled_from([0.0, 0.3, 2.0, 50.0]),
    per_head,
    per_head,
    st.sampled_from([None, "one", "all"]),
    st.sampled_from([FP64, torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_combinations(device, name, softcap, alibi, sinks, bias, dtype, seed):
    problem = PROBLEMS[name]
    if not takes(problem, {"bias": bias} if bias else {}):
        bias = None
    check(problem, dtype, seed=seed, device=device, softcap=softcap, alibi=alibi, sinks=sinks, bias=bias)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)], ids=["3d", "4d", "5d"])
def test_layouts_of_heads(heads):
    """5-D inputs have numbers [groups, heads], 3-D ones a single number; the same as head by head."""
    q, k, v = qkv(heads=heads)
    shape = heads or (1,)
    slopes, sinks = (random(shape, FP64, seed).abs().requires_grad_() for seed in (1, 2))
    options = dict(softcap=2.0, alibi_slopes=slopes, sinks=sinks)
    out = memory_efficient_attention(q, k, v, **options)
    leaves = (q, k, v, slopes, sinks)
    grads = torch.autograd.grad(out.cos().sum(), leaves)
    flat = [x.reshape(x.shape[0], x.shape[1], -1, 8) for x in (q, k, v)]
    options = dict(softcap=2.0, alibi_slopes=slopes.flatten(), sinks=sinks.flatten())
    expected = memory_efficient_attention(*flat, **options)
    expected_grads = torch.autograd.grad(expected.cos().sum(), leaves)
    torch.testing.assert_close(out.flatten(), expected.flatten(), rtol=1e-12, atol=1e-12)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_shared_heads_and_expanded_numbers():
    """One key head for all query heads, and slopes that are an `expand`ed number."""
    q = qkv(nq=2, nk=90)[0]
    key, value = (random((2, 90, 1, 8), FP64, seed).expand(-1, -1, HEADS, -1) for seed in (3, 4))
    slopes = torch.tensor(0.25, dtype=FP64, requires_grad=True)
    options = dict(softcap=2.0, alibi_slopes=slopes.expand(2, HEADS), sinks=torch.zeros(HEADS, dtype=FP64))
    out = memory_efficient_attention(q, key, value, **options)
    full = memory_efficient_attention(q, key.contiguous(), value.contiguous(), **options)
    torch.testing.assert_close(out, full, rtol=1e-12, atol=1e-12)
    numeric = []
    for step in (1e-5, -1e-5):
        moved = dict(options, alibi_slopes=(slopes.detach() + step).expand(2, HEADS))
        numeric.append(memory_efficient_attention(q, key, value, **moved).cos().sum())
    (grad,) = torch.autograd.grad(out.cos().sum(), slopes)
    torch.testing.assert_close(grad, (numeric[0] - numeric[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_row_that_sees_nothing_has_its_sink_alone():
    q, k, v = qkv(nq=7, nk=5)
    sinks = torch.tensor([0.5, -math.inf, 3.0], dtype=FP64, requires_grad=True)
    mask = ab.LowerTriangularFromBottomRightMask()  # the first two rows see nothing
    operands = mask.lower(q.device)[:4]
    out, lse, _ = attention_forward(q, k, v, *operands, sinks=sinks, need_lse=True)
    assert (out[:, :2] == 0).all()
    assert torch.equal(lse[:, :, :2].detach(), sinks.detach()[None, :, None].expand(2, -1, 2))
    # Its lse is the sink, whose gradient is then the lse's; the keys have none.
    grads = torch.autograd.grad(lse[:, :, :2].masked_fill(lse[:, :, :2] == -math.inf, 0).sum(), (q, k, v, sinks))
    assert all((g == 0).all() for g in grads[:3])
    assert torch.equal(grads[3], torch.tensor([4.0, 0.0, 4.0], dtype=FP64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP64], ids=str)
def test_merging_a_sink_is_the_same_as_a_sink_in_the_call(dtype):
    q, k, v = qkv(nq=9, nk=60, dtype=dtype)
    sinks = random((HEADS,), torch.float32 if dtype != FP64 else FP64, 3).requires_grad_()
    parts = [fmha.memory_efficient_attention_partial(q, k[:, s], v[:, s]) for s in (slice(0, 20), slice(20, 60))]
    outs, lses = (list(x) for x in zip(*parts, strict=True))
    zeros, sink_lse = torch.zeros_like(outs[0]), sinks[None, :, None].expand_as(lses[0])
    out, lse = fmha.merge_attentions([*outs, zeros], [*lses, sink_lse.to(lses[0].dtype)])
    expected, expected_lse, _ = attention_forward(q, k, v, sinks=sinks, need_lse=True, out_dtype=out.dtype)
    tolerance = dict(rtol=4 * ULP[dtype], atol=4 * ULP[dtype])
    torch.testing.assert_close(out, expected, **tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
    grads = torch.autograd.grad(out.cos().sum(), (q, k, v, sinks))
    wanted = torch.autograd.grad(expected.cos().sum(), (q, k, v, sinks))
    loose = dict(rtol=64 * ULP[dtype], atol=16 * ULP[dtype])
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, **loose)


def test_a_sink_of_0_is_softmax_off_by_one():
    q, k, v = qkv()
    x = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    weights = x.exp() / (1 + x.exp().sum(-1, keepdim=True))
    expected = torch.einsum("bhij,bjhd->bihd", weights, v)
    out = memory_efficient_attention(q, k, v, sinks=torch.zeros(HEADS, dtype=FP64))
    torch.testing.assert_close(out, expected)
    out = memory_efficient_attention(q, k, v, sinks=torch.full((HEADS,), -math.inf, dtype=FP64))
    assert torch.equal(out, memory_efficient_attention(q, k, v))


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_nan_stays_in_its_head(name):
    q, k, v = qkv()
    numbers = torch.zeros(HEADS, dtype=FP64)
    clean = memory_efficient_attention(q, k, v, **{name: numbers.clone()})
    numbers[1] = math.nan
    out = memory_efficient_attention(q, k, v, **{name: numbers})
    assert out[:, :, 1].isnan().all()
    assert torch.equal(out[:, :, ::2], clean[:, :, ::2])


def test_alibi_of_a_long_sequence_makes_no_tensor_of_its_square():
    """65536 x 65536 scores of one head would be 17 GB."""
    x = torch.randn(1, 65536, 1, 8)
    mask = ab.LocalAttentionFromBottomRightMask(40, 0)
    out = memory_efficient_attention(x, x, x, mask, alibi_slopes=torch.tensor([0.5]))
    rows = slice(65000, 65001)
    keys = slice(65000 - 40, 65001)
    distance = torch.arange(40, -1, -1)
    weights = ((x[0, rows, 0] @ x[0, keys, 0].T) * 8**-0.5 - 0.5 * distance).softmax(-1)
    torch.testing.assert_close(out[0, rows, 0], weights @ x[0, keys, 0])


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 1.0, 10.0, 1e4])
def test_softcap_of_scores_of_every_size(size):
    check_size = random((1, 20, HEADS, DIM), torch.float32, 1) * size
    problem = Problem(None, [(list(range(20)), list(range(130)))], 130, softcap=1.0)
    leaves = leaves_of(problem, torch.float32)
    leaves["query"] = check_size.requires_grad_()
    out, _ = attend(problem, leaves)
    (exact, _), (plain, _) = formula(problem, leaves, FP64), formula(problem, leaves, torch.float32)
    error, plain_error = ((x - exact["out"]).abs().max() for x in (out, plain["out"]))
    assert error <= 2 * plain_error + 4 * ULP[torch.float32] * exact["out"].abs().max()
