"""NaN stays NaN: in a query, or in a key or bias that a row sees, it makes the row's out, lse and gradients NaN.

Other rows are left alone."""

import pytest
import torch
from attention_inputs import qkv
from devices import on_each_device  # noqa: F401

from xformers.ops import memory_efficient_attention, memory_efficient_attention_partial, merge_attentions

forward = torch.ops.xformers.attention_forward
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(1, 64), (1, 4096), (2, 5000), (4, 600), (70, 200), (70, 3000)]


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # few queries against many keys then split the keys
    yield
    torch.set_num_threads(before)


def inputs(nq, nk, dtype):
    return qkv(batch=2, nq=nq, nk=nk, heads=(2,), head_dim=16, dtype=dtype, requires_grad=False)


def check(query, key, value, bias=None, *, rows, **options):
    """rows: booleans [batch, heads, seqlen_q], where NaN is expected."""
    out, lse, lse_low = forward(query, key, value, bias, need_lse=True, **options)
    assert torch.equal(lse.isnan(), rows)
    assert torch.equal(out.transpose(1, 2).isnan(), rows[..., None].expand(*rows.shape, out.shape[-1]))
    assert (lse_low[rows] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", SIZES)
@pytest.mark.parametrize("splits", [0, 3])
def test_in_a_query(nq, nk, dtype, splits):
    query, key, value = inputs(nq, nk, dtype)
    query[1, nq // 2, 0, 3] = torch.nan
    rows = torch.zeros(2, 2, nq, dtype=torch.bool)
    rows[1, 0, nq // 2] = True
    check(query, key, value, rows=rows, num_splits=splits)
    check(query, key, value, torch.zeros(2, 2, nq, nk, dtype=dtype), rows=rows, num_splits=splits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", SIZES)
@pytest.mark.parametrize("at", [0, 0.5, 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("splits", [0, 3])
def test_in_a_key(nq, nk, dtype, at, splits):
    query, key, value = inputs(nq, nk, dtype)
    index = int(at * (nk - 1))
    key[1, index, 1, 3] = torch.nan
    rows = torch.zeros(2, 2, nq, dtype=torch.bool)
    rows[1, 1] = True
    check(query, key, value, rows=rows, num_splits=splits)
    rows[1, 1] = torch.arange(nq) + nk - nq >= index  # those that see it
    check(query, key, value, rows=rows, window_right=0, bottom_right=True, num_splits=splits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", SIZES)
def test_in_all_keys(nq, nk, dtype):
    """No score is a number then: that is not a row that sees no key."""
    query, key, value = inputs(nq, nk, dtype)
    key[0, :, 0] = torch.nan
    rows = torch.zeros(2, 2, nq, dtype=torch.bool)
    rows[0, 0] = True
    check(query, key, value, rows=rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", SIZES)
def test_in_a_bias(nq, nk, dtype):
    query, key, value = inputs(nq, nk, dtype)
    bias = torch.zeros(2, 2, nq, nk, dtype=dtype)
    bias[0, 1, nq // 2, nk // 3] = torch.nan
    rows = torch.zeros(2, 2, nq, dtype=torch.bool)
    rows[0, 1, nq // 2] = True
    check(query, key, value, bias, rows=rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_a_key_that_a_bias_hides(dtype):
    query, key, value = inputs(70, 200, dtype)
    key[0, 17] = torch.nan
    bias = torch.zeros(2, 2, 70, 200, dtype=dtype)
    bias[..., 17] = -torch.inf
    check(query, key, value, bias, rows=torch.zeros(2, 2, 70, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", [(1, 4096), (70, 200)])
@pytest.mark.parametrize("where", ["query", "key"])
def test_in_gradients(nq, nk, dtype, where):
    query, key, value = inputs(nq, nk, dtype)
    (query if where == "query" else key)[1, 0, 0, 3] = torch.nan
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out = memory_efficient_attention(*leaves)
    dq, dk, dv = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(x[0].isfinite().all() and x[1, :, 1].isfinite().all() for x in (dq, dk, dv))
    assert dk[1, :, 0].isnan().all() and dv[1, :, 0].isnan().all()
    assert dq[1, :1, 0].isnan().all()
    if where == "query":
        assert dq[1, 1:, 0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nq, nk", [(1, 4096), (70, 200)])
@pytest.mark.parametrize("where", ["query", "key"])
def test_in_parts_that_are_merged(nq, nk, dtype, where):
    query, key, value = inputs(nq, nk, dtype)
    (query if where == "query" else key)[1, 0, 0, 3] = torch.nan
    parts = [
        memory_efficient_attention_partial(query, key[:, part], value[:, part])
        for part in (slice(0, nk // 3), slice(nk // 3, nk), slice(nk, nk))
    ]
    out, lse = merge_attentions(*zip(*parts, strict=True))
    seen = slice(0, 1) if where == "query" else slice(0, nq)
    assert out[1, seen, 0].isnan().all() and lse[1, 0, seen].isnan().all()
    assert out[0].isfinite().all() and out[1, :, 1].isfinite().all() and lse[0].isfinite().all()
    if where == "query":
        assert out[1, 1:, 0].isfinite().all() and lse[1, 0, 1:].isfinite().all()


def test_an_lse_that_is_nan():
    out, lse = torch.ones(3, 1, 4, 2, 8), torch.zeros(3, 1, 2, 4)
    lse[1, 0, 1, 2] = torch.nan
    lse[0] = -torch.inf
    out[0] = torch.nan  # not read
    merged, total = merge_attentions(out, lse)
    expected = torch.zeros(1, 2, 4, dtype=torch.bool)
    expected[0, 1, 2] = True
    assert torch.equal(total.isnan(), expected)
    assert torch.equal(merged.isnan(), expected.transpose(1, 2)[..., None].expand(1, 4, 2, 8))
