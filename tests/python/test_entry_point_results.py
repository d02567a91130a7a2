"""What the entry points return: formats of the lse, output dtypes, partial results."""

import pytest
import torch
from attention_inputs import random
from fmha_inputs import BACKWARDS, BF16, F16, F32, F64, FORWARDS, PACKED, half, name
from xformers.ops.fmha import attn_bias as ab
from xformers.ops.fmha import cutlass, flash, flash3, generic, triton_splitk

from xformers.ops import (
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
    merge_attentions,
)


def test_lse_formats_of_whole_batches():
    inputs = half(nq=33, requires_grad=False)
    _, plain = memory_efficient_attention_forward_requires_grad(*inputs)
    assert plain.shape == (1, 2, 33) and plain.dtype == F32
    for op, width in ((cutlass.FwOp, 64), (flash.FwOp, 33), (flash3.FwOp, 33), (triton_splitk.FwOp, 33)):
        _, lse = memory_efficient_attention_forward_requires_grad(*inputs, op=op)
        assert lse.shape == (1, 2, width) and lse.dtype == F32, op
        assert torch.equal(lse[..., :33], plain) and (lse[..., 33:] == torch.inf).all()


def test_lse_formats_of_packed_sequences():
    inputs = half(nq=40, nk=45, requires_grad=False)
    _, plain = memory_efficient_attention_forward_requires_grad(*inputs, PACKED)
    assert plain.shape == (1, 2, 40)
    _, packed = memory_efficient_attention_forward_requires_grad(*inputs, PACKED, op=flash.FwOp)
    assert torch.equal(packed, plain)
    _, padded = memory_efficient_attention_forward_requires_grad(*inputs, PACKED, op=cutlass.FwOp)
    assert padded.shape == (3, 2, 64)
    assert torch.equal(padded[0, :, :33], plain[0, :, :33]) and torch.equal(padded[2, :, :7], plain[0, :, 33:])
    assert (padded[0, :, 33:] == torch.inf).all() and (padded[1] == torch.inf).all()
    assert (padded[2, :, 7:] == torch.inf).all()


def test_wide_lse_of_split_k():
    inputs = half(requires_grad=False)
    for dtype, lse_dtype in ((None, F32), (F32, F64), (F64, F64), (F16, F32)):
        out, lse = memory_efficient_attention_forward_requires_grad(*inputs, op=triton_splitk.FwOp, output_dtype=dtype)
        assert out.dtype == (dtype or BF16) and lse.dtype == lse_dtype


@pytest.mark.parametrize("op", [None, *BACKWARDS], ids=name)
def test_functional_backward_takes_every_format(op):
    inputs = half(nq=40, nk=45, requires_grad=False)
    grad = random((1, 40, 2, 64), BF16, seed=7)
    for bias in (None, PACKED):
        leaves = [x.clone().requires_grad_() for x in inputs]
        expected = torch.autograd.grad(memory_efficient_attention(*leaves, bias), leaves, grad)
        for forward in (None, cutlass.FwOp, flash.FwOp):
            out, lse = memory_efficient_attention_forward_requires_grad(*inputs, bias, op=forward)
            packed = lse.shape == (1, 2, 40)
            if bias is not None and op is not None and packed != op.VARLEN_LSE_PACKED:
                with pytest.raises(ValueError, match=op.NAME):
                    memory_efficient_attention_backward(grad, out, lse, *inputs, bias, op=op)
                continue
            got = memory_efficient_attention_backward(grad, out, lse, *inputs, bias, op=op)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_functional_backward_does_not_return_the_gradient_of_the_bias():
    query, key, value = half(dtype=F32, requires_grad=False)
    bias = random((1, 2, 40, 40), seed=4, requires_grad=True)
    out, lse = memory_efficient_attention_forward_requires_grad(query, key, value, bias)
    assert len(memory_efficient_attention_backward(out, out, lse, query, key, value, bias)) == 3


@pytest.mark.parametrize(
    "function",
    [
        memory_efficient_attention_forward_requires_grad,
        memory_efficient_attention_partial,
        lambda q, k, v, p: memory_efficient_attention_backward(q, q, q, q, k, v, None, p),
    ],
)
def test_dropout_is_refused_where_its_mask_would_be_lost(function):
    with pytest.raises(NotImplementedError, match="p is 0.5, expected 0"):
        function(*half(), p=0.5)


@pytest.mark.parametrize("op", [None, triton_splitk.FwOp, generic.FwOp], ids=name)
@pytest.mark.parametrize("dtype", [None, BF16, F16, F32, F64], ids=str)
def test_output_dtype(op, dtype):
    inputs = half(requires_grad=False)
    out = memory_efficient_attention_forward(*inputs, op=op, output_dtype=dtype)
    assert out.dtype == (dtype or BF16)
    if dtype in (F32, F64):
        assert torch.equal(out.bfloat16(), memory_efficient_attention(*inputs))
        assert not torch.equal(out, out.bfloat16().to(dtype))  # not merely rounded and widened


def test_output_dtype_and_gradients():
    inputs = half()
    out = memory_efficient_attention(*inputs, output_dtype=F32)
    assert out.dtype == F32
    got = torch.autograd.grad(out.sum(), inputs)
    assert all(grad.dtype == BF16 for grad in got)
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", [cutlass, flash, flash3], ids=lambda m: m.__name__.split(".")[-1])
def test_output_dtype_that_an_operator_does_not_give(op):
    with pytest.raises(ValueError, match="output_dtype"):
        memory_efficient_attention(*half(), op=(op.FwOp, op.BwOp), output_dtype=F32)
    assert memory_efficient_attention(*half(), op=(op.FwOp, op.BwOp), output_dtype=BF16).dtype == BF16


@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
@pytest.mark.parametrize("heads", [(2,), (2, 2)], ids=["4d", "5d"])
def test_parts_make_the_whole(heads, dtype):
    query, key, value = half(nk=90, heads=heads, dtype=dtype)
    parts = [
        memory_efficient_attention_partial(query, key[:, a:b], value[:, a:b])
        for a, b in ((0, 30), (30, 31), (31, 31), (31, 90))
    ]
    wide = torch.float64 if dtype == F64 else F32
    assert all(out.dtype == wide and lse.dtype == wide and lse.shape == (1, *heads, 40) for out, lse in parts)
    out, lse = merge_attentions([out for out, _ in parts], [lse for _, lse in parts], output_dtype=dtype)
    expected, expected_lse, _ = torch.ops.xformers.attention_forward(query, key, value, need_lse=True)
    tolerance = {BF16: 1e-2, F32: 2e-6, F64: 1e-13}[dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)
    grad, grad_lse = random(out.shape, dtype, seed=5), random(lse.shape, wide, seed=6)
    got = torch.autograd.grad([out, lse], (query, key, value), [grad, grad_lse])
    wanted = torch.autograd.grad([expected, expected_lse], (query, key, value), [grad, grad_lse])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("op", [*FORWARDS, (flash.FwOp, flash.BwOp), (None, None)], ids=name)
def test_partial_by_name(op):
    inputs = half(requires_grad=False)
    out, lse = memory_efficient_attention_partial(*inputs, op=op)
    expected, expected_lse = memory_efficient_attention_partial(*inputs)
    wide = op in (triton_splitk.FwOp, generic.FwOp, (None, None))
    assert out.dtype == (F32 if wide else BF16)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
    assert lse.dtype == (F64 if op is triton_splitk.FwOp else F32)
    assert torch.equal(lse[..., :40].float(), expected_lse)


def test_partial_over_packed_sequences_with_gradients():
    """A shared prefix and tails of their own, as serving programs do."""
    query, key, value = half(nq=3, nk=29, dtype=F32)
    prefix = ab.BlockDiagonalPaddedKeysMask.from_seqlens([3], 8, [8])
    tails = ab.BlockDiagonalGappyKeysMask.from_seqlens([2, 1], [0, 9, 21], [9, 11])
    parts = [
        memory_efficient_attention_partial(query, key[:, :8], value[:, :8], prefix),
        memory_efficient_attention_partial(query, key[:, 8:], value[:, 8:], tails),
    ]
    out, lse = merge_attentions(*zip(*parts, strict=True))
    assert lse.shape == (1, 2, 3)
    rows = torch.full((3, 29), -torch.inf)
    rows[:, :8], rows[:2, 8:17], rows[2, 17:28] = 0, 0, 0
    bias = rows.expand(1, 2, 3, 29)
    expected = memory_efficient_attention(query, key, value, bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    got, wanted = (torch.autograd.grad(x.square().sum(), (query, key, value)) for x in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
