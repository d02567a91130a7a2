"""The structures that programs build themselves: Inputs, Context, Gradients, and the functions on them."""

import pytest
import torch
from attention_inputs import qkv, random
from attn_bias_cases import CASES
from fmha_inputs import BF16, F16, F32, F64, half
from xformers.ops.fmha import Context, Gradients, Inputs, cutlass, generic
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import (
    fmha,
    memory_efficient_attention,
)


def test_inputs():
    query, key, value = half(nk=7, heads=(2,), requires_grad=False)
    inp = Inputs(query, key, value)
    assert (inp.attn_bias, inp.p, inp.scale, inp.output_dtype, inp.is_partial) == (None, 0.0, None, None, False)
    assert (
        inp.device.type == "cpu"
        and inp.scale_float == 64**-0.5
        and Inputs(query, key, value, scale=2.0).scale_float == 2
    )
    assert inp.nbytes == 2 * (query.numel() + 2 * key.numel())
    assert inp.get_output_dtype() == BF16
    assert Inputs(query, key, value, is_partial=True).get_output_dtype() == F32
    assert Inputs(query.double(), key, value, is_partial=True).get_output_dtype() == F64
    assert Inputs(query, key, value, output_dtype=F16, is_partial=True).get_output_dtype() == F16
    assert [x.shape for x in inp.get_qkv_in_bmghk()] == [(1, 40, 1, 2, 64), (1, 7, 1, 2, 64), (1, 7, 1, 2, 64)]
    expanded = key[:, :, :1].expand(-1, -1, 8, -1)
    assert Inputs(query, expanded, expanded).nbytes == 2 * (query.numel() + 2 * key.numel())


def test_normalize():
    query, key, value = (x[:, :, 0] for x in half(nk=7, head_dim_v=24, requires_grad=False))
    bias = torch.zeros(1, 40, 7, dtype=BF16)
    inp = Inputs(query, key, value, bias)
    assert inp.normalize_bmhk() == (1, 40, 24)
    assert (
        inp.query.shape == (1, 40, 1, 64) and inp.value.shape == (1, 7, 1, 24) and inp.attn_bias.shape == (1, 1, 40, 7)
    )
    assert inp.normalize_bmhk() == (1, 40, 1, 24)  # nothing left to do
    causal = Inputs(query, key, value, ab.LowerTriangularMask())
    causal.normalize_bmhk()
    assert type(causal.attn_bias) is ab.LowerTriangularMask and causal.attn_bias.ndim == 0
    assert [x.shape for x in Inputs(query, key, value).get_qkv_in_bmghk()][0] == (1, 40, 1, 1, 64)
    for method in ("normalize_bmhk", "get_qkv_in_bmghk"):
        with pytest.raises(ValueError, match="query.ndim is 2"):
            getattr(Inputs(query[0], key[0], value[0]), method)()


def test_padded_lse():
    out = torch.zeros(1, 5, 2, 4)
    lse = torch.zeros(1, 2, 5)
    padded = Context(lse=lse, out=out).get_padded_lse(32)
    assert padded.shape == (1, 2, 32) and (padded[..., 5:] == torch.inf).all() and (padded[..., :5] == 0).all()
    assert Context(lse=torch.zeros(1, 2, 32), out=out).get_padded_lse(32).shape == (1, 2, 32)
    long = Context(lse=torch.zeros(1, 2, 33), out=out)
    assert (long.get_padded_lse(32)[..., :33] == 0).all() and long.get_padded_lse(32).shape == (1, 2, 64)
    forced = long.get_padded_lse(32, force_pad_inf=True)
    assert forced.shape == (1, 2, 64) and (forced[..., 5:] == torch.inf).all() and (forced[..., :5] == 0).all()


def test_defaults_of_context_and_gradients():
    context = Context(lse=torch.zeros(1), out=torch.zeros(1))
    assert (context.op_bw, context.rng_state, context.qkv_share_storage) == (None, None, False)
    assert Gradients(torch.zeros(1), torch.zeros(1), torch.zeros(1)).db is None


@pytest.mark.parametrize("heads", [(), (2,), (2, 2)], ids=["3d", "4d", "5d"])
def test_private_functions(heads):
    """As programs outside call them: forward with context, then backward with a context of their own making."""
    inputs = qkv(nq=40, nk=30, heads=heads, requires_grad=False)
    bias = random((2, *heads, 40, 30), seed=4, requires_grad=True)
    inp = Inputs(query=inputs[0], key=inputs[1], value=inputs[2], attn_bias=bias, p=0.0, scale=None, is_partial=False)
    for op in (None, cutlass.FwOp):
        out, context = fmha._memory_efficient_attention_forward_requires_grad(inp, op=op)
        assert torch.equal(out, fmha._memory_efficient_attention_forward(inp, op=op))
        rebuilt = Context(lse=context.lse, out=out, rng_state=context.rng_state)
        grads = fmha._memory_efficient_attention_backward(ctx=rebuilt, inp=inp, grad=out, op=None)
        leaves = [x.clone().requires_grad_() for x in inputs]
        expected = torch.autograd.grad(memory_efficient_attention(*leaves, bias), [*leaves, bias], out)
        for got, want in zip((grads.dq, grads.dk, grads.dv, grads.db), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("case", CASES)
def test_every_bias_through_the_structures(case):
    """The generic operator takes every bias, forward and backward."""
    case = CASES[case]
    bias = case.build()
    inputs = qkv(1, case.queries, case.columns, requires_grad=False)
    out, context = fmha._memory_efficient_attention_forward_requires_grad(Inputs(*inputs, bias), op=generic.FwOp)
    assert torch.equal(out, memory_efficient_attention(*inputs, bias))
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(memory_efficient_attention(*leaves, bias), leaves, out)
    got = fmha._memory_efficient_attention_backward(context, Inputs(*inputs, bias), out, op=generic.BwOp)
    assert all(torch.equal(a, b) for a, b in zip((got.dq, got.dk, got.dv), expected, strict=True))


def test_bmk2bmhk():
    x = random((6, 5, 4))
    assert torch.equal(fmha.bmk2bmhk(x, 3)[1, :, 2], x[5]) and fmha.bmk2bmhk(x, 3).shape == (2, 5, 3, 4)
    four = x.view(2, 3, 5, 4)
    assert fmha.bmk2bmhk(four, 3) is four


def test_alignment_helper():
    check = fmha.common.check_lastdim_alignment_stride1

    def reasons(x, n=8):
        found = []
        check(found, "query", x, n)
        return found

    x = torch.zeros(2, 5, 3, 16)
    assert reasons(x) == []
    assert "query.shape[-1] is 15" in reasons(x[..., :15])[0]
    assert "query.stride(-2) is 12" in reasons(torch.zeros(2, 12)[:, :8])[0]
    assert ".contiguous()" in reasons(torch.zeros(2, 16, 8).transpose(1, 2))[-1]
    assert reasons(torch.zeros(3, 1).expand(3, 8).contiguous()) == []
