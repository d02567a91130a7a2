"""Changes of the entry points, their names and arguments, release by release."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from attention_inputs import qkv, random, with_strides
from attention_reference import check_attention
from xformers.ops.fmha import attn_bias as ab

import xformers.ops
from xformers.ops import fmha, memory_efficient_attention

ROOT = Path(__file__).resolve().parents[3]


def grads_of(out, inputs, grad=None):
    return torch.autograd.grad(out, inputs, torch.ones_like(out) if grad is None else grad)


def assert_all_close(got, expected, **options):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **options)


def test_backends_removed():
    """0.0.28, 0.0.25: backends `decoder`, `small_k`, Triton flash are gone, one-query calls still run."""
    for name in (
        "decoder",
        "small_k",
        "triton",
        "TritonFlashAttentionOp",
        "MemoryEfficientAttentionTritonFwdFlashBwOp",
    ):
        assert not hasattr(fmha, name) and not hasattr(xformers.ops, name), name
    assert not hasattr(fmha.dispatch, "AttentionOpDispatch")
    names = (
        {cls.NAME for cls in fmha.common.OPERATORS_REGISTRY} if hasattr(fmha.common, "OPERATORS_REGISTRY") else set()
    )
    assert not {name for name in names if "small" in name or name.startswith("decoder")}
    query, key, value = qkv(nq=1, nk=300, heads=(4,), head_dim=64, dtype=torch.bfloat16, requires_grad=False)
    check_attention(memory_efficient_attention, query, key, value)


def test_oldest_torch():
    """0.0.27: releases of PyTorch that are not supported are refused by the package's metadata."""
    (floor,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert tuple(int(part) for part in floor.split(".")) >= (2, 2)


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)], ids=["BMK", "BMHK", "BMGHK"])
def test_functional_halves(heads):
    """0.0.16: forward, forward_requires_grad and backward as functions agree with autograd in every layout."""
    query, key, value = qkv(heads=heads)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(query, key, value)
    assert lse.shape == (2, *(heads or (1,)), 5)
    assert torch.equal(out, fmha.memory_efficient_attention_forward(query, key, value))
    got = fmha.memory_efficient_attention_backward(torch.ones_like(out), out, lse, query, key, value)
    assert_all_close(got, grads_of(memory_efficient_attention(query, key, value), (query, key, value)))
    assert [x.shape for x in got] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("op", [None, "cutlass", "flash"])
def test_custom_scale(op, scale):
    """0.0.16: a scale of one's own, forward and backward, in every operator."""
    dtype = torch.float16 if op == "flash" else torch.float32
    ops = (getattr(fmha, op).FwOp, getattr(fmha, op).BwOp) if op else None

    def attend(q, k, v, _):
        return memory_efficient_attention(q, k, v, None, 0.0, scale, op=ops)

    check_attention(attend, *qkv(head_dim=16, dtype=dtype), scale=scale)


def test_scale_one_with_padded_keys():
    """0.0.16: scale 1 beside a bias of padded keys."""
    bias = ab.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 8, [5, 7])
    query, key, value = qkv(batch=1, nq=5, nk=16, requires_grad=False)
    seen = bias.materialize((5, 16))

    def attend(q, k, v, _):
        return memory_efficient_attention(q, k, v, bias, scale=1.0)

    check_attention(attend, query, key, value, bias=seen, scale=1.0)


BACKENDS = ["cutlass", "flash", None]


@pytest.mark.parametrize("forward, backward", list(itertools.product(BACKENDS, BACKENDS)))
def test_forward_and_backward_combine_freely(forward, backward):
    """0.0.16: any forward with any backward where sequences are not packed."""
    ops = tuple(getattr(fmha, name) if name else None for name in (forward, backward))
    ops = (ops[0].FwOp if ops[0] else None, ops[1].BwOp if ops[1] else None)

    def attend(q, k, v, _):
        return memory_efficient_attention(q, k, v, ab.LowerTriangularMask(), op=ops)

    bias = ab.LowerTriangularMask().materialize((33, 33))
    check_attention(attend, *qkv(nq=33, nk=33, head_dim=32, dtype=torch.float16), bias=bias)


def test_cutlass_forward_with_flash_backward():
    """0.0.14: cutlass forward with flash backward, under its public name."""
    op = xformers.ops.MemoryEfficientAttentionCutlassFwdFlashBwOp
    assert op == (fmha.cutlass.FwOp, fmha.flash.BwOp)
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, op=op), *qkv(head_dim=32, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize("op", [None, "cutlass", "flash"])
@pytest.mark.parametrize("kind", ["expanded scalar", "transposed"])
def test_gradient_that_is_not_contiguous(kind, op):
    """0.0.16: an incoming gradient may lie anyhow in memory."""
    ops = (getattr(fmha, op).FwOp, getattr(fmha, op).BwOp) if op else None
    inputs = qkv(heads=(4,), head_dim=32, dtype=torch.float16)
    out = memory_efficient_attention(*inputs, op=ops)
    if kind == "expanded scalar":
        grad = torch.full((), 0.5, dtype=out.dtype).expand_as(out)
    else:
        grad = random(out.transpose(1, 3).shape, out.dtype, seed=7).transpose(1, 3)
    assert not grad.is_contiguous()
    got = grads_of(out, inputs, grad)
    expected = grads_of(memory_efficient_attention(*inputs, op=ops), inputs, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_packed_qkv_gradient_is_not_copied():
    """0.0.14, 0.0.16: the gradients of unbound q, k, v come back as one tensor, in the layout of the packed input."""
    packed = random((2, 9, 3, 4, 16), requires_grad=True)
    out = memory_efficient_attention(*xformers.ops.unbind(packed, 2))
    (grad,) = grads_of(out, [packed])
    separate = [x.detach().requires_grad_() for x in packed.unbind(2)]
    expected = grads_of(memory_efficient_attention(*separate), separate)
    assert_all_close(grad.unbind(2), expected)
    assert grad.shape == packed.shape and grad.is_contiguous()


@pytest.mark.parametrize("view", ["contiguous", "permuted"])
def test_unbind_family(view):
    """0.0.14: unbind and stack_or_none recognise neighbours in memory, without a copy."""
    x = random((3, 4, 2, 5, 6))
    x = x.permute(3, 0, 4, 2, 1) if view == "permuted" else x
    for dim in range(5):
        parts = xformers.ops.unbind(x, dim)
        back = xformers.ops.stack_or_none(parts, dim)
        assert torch.equal(back, x) and back.data_ptr() == x.data_ptr() and back.stride() == x.stride()
        assert xformers.ops.get_stack_strides(parts, dim) == x.stride()
        if len(parts) > 2:
            assert torch.equal(xformers.ops.stack_or_none(parts[::2], dim), torch.stack(parts[::2], dim))
            assert xformers.ops.stack_or_none(parts[::-1], dim) is None
    assert xformers.ops.stack_or_none([x[0], x[1].clone()], 0) is None


def test_unbind_backward_shares_memory():
    """0.0.14: where the incoming gradients are neighbours already, unbind's backward stacks them without a copy."""
    x = random((2, 7, 3, 4, 8), requires_grad=True)
    stacked = random((2, 7, 3, 4, 8), seed=1)
    (grad,) = torch.autograd.grad(xformers.ops.unbind(x, 2), x, stacked.unbind(2))
    assert torch.equal(grad, stacked) and grad.data_ptr() == stacked.data_ptr()


@pytest.mark.parametrize("head_dim, head_dim_v", [(32, 264), (36, 64), (264, 36), (512, 512), (1, 3), (1000, 600)])
@pytest.mark.parametrize("op", [None, "cutlass"])
def test_any_head_dim(head_dim, head_dim_v, op):
    """0.0.13: any head_dim, value with its own."""
    ops = (fmha.cutlass.FwOp, fmha.cutlass.BwOp) if op else None
    inputs = qkv(batch=1, head_dim=head_dim, head_dim_v=head_dim_v)
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, op=ops), *inputs)


@pytest.mark.parametrize("strides", ["packed", "heads_first", "wide", "last_not_unit"])
def test_gradients_are_dense_whatever_the_strides(strides):
    """0.0.16: gradients of strided inputs have the inputs' shape and the values of contiguous ones."""
    plain = qkv(heads=(4,), head_dim=16)
    strided = [with_strides(x.detach(), strides).requires_grad_() for x in plain]
    got, expected = (grads_of(memory_efficient_attention(*x), x) for x in (strided, plain))
    assert_all_close(got, expected)
