"""Empty and tiny inputs, rows that see no key, infinities and NaN where they must not matter."""

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention

attention_forward = torch.ops.xformers.attention_forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "mask", [None, LowerTriangularMask(), LowerTriangularFromBottomRightMask()], ids=["none", "causal", "causal_br"]
)
@pytest.mark.parametrize("batch, nq, nk, heads", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 0, 0, 2), (2, 3, 4, 0)])
def test_empty_inputs(batch, nq, nk, heads, mask, dtype):
    query, key, value = qkv(batch=batch, nq=nq, nk=nk, heads=(heads,), dtype=dtype)
    out = memory_efficient_attention(query, key, value, mask)
    assert out.shape == query.shape and (out == 0).all()
    for grad, x in zip(torch.autograd.grad(out.sum(), (query, key, value)), (query, key, value), strict=False):
        assert grad.shape == x.shape and (grad == 0).all()


def test_no_key_gives_lse_minus_infinity():
    query, key, value = qkv(nk=0)
    _, lse, _ = attention_forward(query, key, value, need_lse=True)
    assert lse.shape == (2, 3, 5) and (lse == -torch.inf).all()


@pytest.mark.parametrize("nq, nk", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("head_dim", [1, 3])
def test_sequences_of_one(nq, nk, head_dim):
    check_attention(memory_efficient_attention, *qkv(nq=nq, nk=nk, head_dim=head_dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_see_no_key(dtype):
    """Bottom-right alignment with more queries than keys hides all keys from the first rows."""
    query, key, value = qkv(nq=40, nk=7, dtype=dtype)
    mask = LowerTriangularFromBottomRightMask()
    out, lse, _ = attention_forward(query, key, value, None, *mask._BAND, need_lse=True)
    assert (out[:, :33] == 0).all() and (lse[..., :33] == -torch.inf).all() and lse[..., 33:].isfinite().all()
    grads = torch.autograd.grad(out.sum() + lse[..., 33:].sum(), (query, key, value))
    assert all(grad.isfinite().all() for grad in grads) and (grads[0][:, :33] == 0).all()


def test_gradient_into_the_lse_of_a_row_that_sees_no_key_is_dropped():
    query, key, value = qkv(nq=4, nk=2)
    _, lse, _ = attention_forward(query, key, value, None, -1, 0, True, need_lse=True)
    grads = torch.autograd.grad(lse, (query, key, value), torch.ones_like(lse))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][:, :2] == 0).all() and (grads[0][:, 2:] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 64, 129, 300], ids=lambda n: f"{n}_hidden")
def test_bias_that_hides_the_first_keys(hidden, dtype):
    query, key, value = qkv(batch=1, nq=10, nk=301, heads=(2,), head_dim=16, dtype=dtype)
    bias = torch.zeros(1, 2, 10, 301, dtype=dtype)
    bias[..., :hidden] = -torch.inf
    check_attention(memory_efficient_attention, query, key, value, tensor_bias=bias.requires_grad_())


def test_bias_that_hides_whole_blocks_and_whole_rows():
    query, key, value = qkv(batch=1, nq=150, nk=400, heads=(2,), head_dim=16)
    bias = torch.zeros(1, 2, 150, 400)
    bias[..., 100:300] = -torch.inf
    bias[:, :, 70:75] = -torch.inf
    check_attention(memory_efficient_attention, query, key, value, tensor_bias=bias.requires_grad_())


def test_nan_in_unused_keys_does_not_leak():
    query, key, value = qkv(batch=1, nq=6, nk=24, requires_grad=False)
    starts, used = torch.tensor([0, 8, 16], dtype=torch.int32), torch.tensor([3, 0, 8], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 4, 6], dtype=torch.int32)
    used_keys = torch.cat([torch.arange(0, 3), torch.arange(16, 24)])
    for x in (key, value):
        unused = torch.ones(24, dtype=torch.bool)
        unused[used_keys] = False
        x[:, unused] = torch.nan
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out, lse, _ = attention_forward(*leaves, None, -1, -1, False, offsets, starts, used, need_lse=True)
    mask = BlockDiagonalMask.from_seqlens([2, 2, 2], [3, 0, 8])
    expected = memory_efficient_attention(query, key[:, used_keys], value[:, used_keys], mask)
    torch.testing.assert_close(out, expected)
    assert (out[:, 2:4] == 0).all() and (lse[..., 2:4] == -torch.inf).all()
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(grad.isfinite().all() for grad in grads)
    assert all((grad[:, unused] == 0).all() for grad in grads[1:])


def test_nan_around_the_inputs_does_not_leak():
    query, key, value = qkv(nq=17, nk=19, head_dim=24, strides=("wide", "packed", "wide"))
    check_attention(memory_efficient_attention, query, key, value)


def test_nan_in_an_input_reaches_the_output():
    query, key, value = qkv(requires_grad=False)
    key[0, 3] = torch.nan
    out = memory_efficient_attention(query, key, value)
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_large_scores_do_not_overflow():
    query, key, value = qkv(nq=30, nk=200, dtype=torch.float32)
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, scale=100.0), query, key, value, scale=100.0)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_same_input_twice_gives_the_same_bits(p):
    query, key, value = qkv(batch=2, nq=300, nk=500, heads=(3,), head_dim=32)
    bias = random((2, 3, 300, 500), seed=4, requires_grad=True)
    results = []
    for _ in range(3):
        torch.manual_seed(3)
        out = memory_efficient_attention(query, key, value, bias, p)
        results.append((out, *torch.autograd.grad(out.sum(), (query, key, value, bias))))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=False))


def test_more_than_2_to_the_16_keys():
    query, key, value = qkv(batch=1, nq=2, nk=2**16 + 3, heads=(1,), head_dim=8)
    check_attention(memory_efficient_attention, query, key, value)


def test_many_batches_and_heads():
    query, key, value = qkv(batch=300, nq=2, nk=3, heads=(300,), head_dim=2, requires_grad=False)
    out = memory_efficient_attention(query, key, value)
    check_attention(lambda *_: out, query, key, value)


def test_window_larger_than_the_sequence_sees_everything():
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value, LocalAttentionFromBottomRightMask(2**40, 2**40))
    torch.testing.assert_close(out, memory_efficient_attention(query, key, value))
