"""A finite score is never a hidden one.

Rows whose scores are far from 0, as models pad, are the softmax of these scores as fp32 holds them, in both directions.
"""

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import ULP
from devices import on_each_device  # noqa: F401

from xformers.ops import fmha, memory_efficient_attention, memory_efficient_attention_partial, merge_attentions

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LOW = {
    "finfo_min": lambda dtype: torch.finfo(dtype).min,
    "minus_1e9": lambda dtype: max(-1e9, -6e4 if dtype == torch.float16 else -1e9),
    "minus_1e30": lambda dtype: max(-1e30, -6e4 if dtype == torch.float16 else -1e30),
}


def formula(query, key, value, bias, scale=0.25):
    """out and lse in fp64, the scores rounded to what a kernel holds; and the fp64 leaves that they come from."""
    leaves = [x.detach().double().requires_grad_() for x in (query, key, value, bias)]
    q, k, v, b = leaves
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale + b
    if query.dtype != torch.float64:
        lowest = torch.finfo(torch.float32).min  # what lies below by less than half a unit is rounded to it
        scores = scores + (scores.clamp(min=lowest).float().double() - scores).detach()
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    out = torch.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdim=True), v)
    return out, scores.logsumexp(-1).detach(), leaves


def assert_close(got, expected, dtype, bound=16):
    bound *= ULP[dtype] * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=bound)


def check(query, key, value, bias, scale=0.25, *, bound=16, given=True):
    """Output and gradients; given: the bias is passed, and has a gradient."""
    leaves = [x.detach().requires_grad_() for x in ((query, key, value, bias) if given else (query, key, value))]
    out = memory_efficient_attention(*leaves, scale=scale)
    incoming = random(out.shape, query.dtype, seed=9)
    expected, _, exact = formula(query, key, value, bias, scale)
    assert_close(out, expected, query.dtype)
    wanted = torch.autograd.grad(expected, exact[: len(leaves)], incoming.double())
    for got, want in zip(torch.autograd.grad(out, leaves, incoming), wanted, strict=True):
        assert_close(got, want, query.dtype, bound)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", [(200, 200), (4, 200), (4, 3000), (1, 1)])
def test_left_padding(nq, nk, dtype, low):
    """Keys of padding, and rows of padding, in one of two sequences."""
    query, key, value = qkv(nq=nq, nk=nk, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)
    bias = torch.zeros(2, 2, nq, nk, dtype=dtype)
    bias[0, :, :, : nk // 2] = LOW[low](dtype)
    bias[0, :, : (nq + 1) // 2] = LOW[low](dtype)
    check(query, key, value, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_large_products(sign, dtype):
    """The scores themselves are large, and equal: no bias is needed for it."""
    size = 2.0**7 if dtype == torch.float16 else 2.0**15
    query, key, value = qkv(batch=1, nq=70, nk=130, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)
    query[..., 0], key[..., 0] = size, sign * size
    query[..., 1:] = 0
    bias = torch.zeros(1, 2, 70, 130, dtype=dtype)
    for given in (True, False):
        check(query, key, value, bias, given=given, bound=64 * size)  # a sum of differences that vanish, times size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_lse_and_what_it_loses(dtype):
    query, key, value = qkv(batch=1, nq=5, nk=130, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)
    bias = torch.zeros(1, 2, 5, 130, dtype=dtype)
    bias[:, :, :3] = LOW["minus_1e9"](dtype)
    _, lse, lse_low = torch.ops.xformers.attention_forward(query, key, value, bias, need_lse=True)
    expected = formula(query, key, value, bias)[1]
    torch.testing.assert_close(lse.double() + lse_low.double(), expected, rtol=1e-13, atol=1e-3)
    exact = lse.dtype == torch.float64
    torch.testing.assert_close(lse.double(), expected, rtol=1e-13 if exact else 1e-7, atol=1e-3)
    if not exact:
        assert (lse_low[:, :, :3] != 0).all()  # log(130) is less than the distance of neighbours
    _, lse, lse_low = torch.ops.xformers.attention_forward(query, key[:, :0], value[:, :0], need_lse=True)
    assert (lse == -torch.inf).all() and (lse_low == 0).all()  # nothing to lose


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq", [1, 70])
def test_equal_parts_merge(nq, dtype):
    """The public lse is one number, so parts of rows at -1e9 weigh alike: right for parts of one size."""
    query, key, value = qkv(batch=1, nq=nq, nk=600, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)
    bias = torch.full((1, 2, nq, 600), LOW["minus_1e9"](dtype), dtype=dtype)
    halves = [
        memory_efficient_attention_partial(query, key[:, part], value[:, part], bias[..., part])
        for part in (slice(0, 300), slice(300, 600))
    ]
    out, _ = merge_attentions(*zip(*halves, strict=True))
    assert_close(out, formula(query, key, value, bias)[0], dtype, bound=1e9 if dtype == torch.float64 else 16)


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq", [1, 70])
def test_split_keys(nq, dtype, splits):
    """Parts of one call carry what the lse would lose, whatever their sizes."""
    query, key, value = qkv(batch=1, nq=nq, nk=700, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)
    bias = torch.zeros(1, 2, nq, 700, dtype=dtype)
    bias[:, 0] = LOW["minus_1e9"](dtype)
    bias[:, 1] = torch.finfo(dtype).min
    out, lse, lse_low = torch.ops.xformers.attention_forward(
        query, key, value, bias, need_lse=True, num_splits=splits, scale=0.25
    )
    expected, expected_lse, _ = formula(query, key, value, bias)
    assert_close(out, expected, dtype)
    torch.testing.assert_close(lse.double() + lse_low.double(), expected_lse, rtol=1e-13, atol=1e-3)


def test_context_carries_what_the_lse_loses():
    query, key, value = qkv(batch=1, nq=5, nk=130, heads=(2,), head_dim=16, requires_grad=False)
    bias = torch.full((1, 2, 5, 130), -1e9)
    inp = fmha.Inputs(query, key, value, bias, scale=0.25)
    out, context = fmha._memory_efficient_attention_forward_requires_grad(inp, None)
    incoming = random(out.shape, seed=9)
    expected, _, exact = formula(query, key, value, bias)
    wanted = torch.autograd.grad(expected, exact[:3], incoming.double())
    got = fmha._memory_efficient_attention_backward(context, inp, incoming, None)
    for gradient, want in zip((got.dq, got.dk, got.dv), wanted, strict=True):
        assert_close(gradient, want, torch.float32)
