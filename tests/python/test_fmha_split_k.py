"""The split-K operator: its classes, integer keys, merging helpers."""

import pytest
import torch
from attention_inputs import qkv
from xformers.ops.fmha import (
    ck_splitk,
    triton_splitk,
)

from xformers.ops import fmha

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def inputs(nq=8, nk=8, heads=(2,), head_dim=32, dtype=BF16, bias=None, batch=1, **options):
    tensors = qkv(batch, nq, nk, heads, head_dim, dtype=dtype, requires_grad=options.pop("requires_grad", False))
    return fmha.Inputs(*tensors, bias, **options)


def test_split_k_classes():
    assert list(triton_splitk.FwOp_Map) == [1, 2, 4, 8, 16, 32, 48, 64, 72, 80, 96, 112, 128]
    for n in (1, 2, 4, 8, 16, 32, 64, 128):
        op = getattr(triton_splitk, f"FwOp_S{n}")
        assert op is triton_splitk.FwOp_Map[n] is triton_splitk.FwOp.get_operator(n)
        assert op.NAME == f"triton_splitK{n}" and op.__name__ == f"FwOp_S{n}" and op.SPLIT_K == n
        assert issubclass(op, triton_splitk.FwOp)
        assert getattr(ck_splitk, f"FwOp_S{n}").SPLIT_K == n
    tuned = triton_splitk.FwOp.get_operator(4, block_m=32, block_n=128, num_warps=4, num_stages=3)
    assert (tuned.BLOCK_M, tuned.BLOCK_N, tuned.NUM_WARPS, tuned.NUM_STAGES) == (32, 128, 4, 3)
    assert tuned is triton_splitk.FwOp.get_operator(4, block_m=32, block_n=128, num_warps=4, num_stages=3)
    assert tuned is not triton_splitk.FwOp_Map[4] and triton_splitk.FwOp.SPLIT_K is None
    attributes = {"BLOCK_M": 16, "BLOCK_N": 64, "NUM_STAGES": 1, "NUM_WARPS": 2, "MAX_BLOCK_M": 32, "AUTOTUNE": False}
    assert all(getattr(triton_splitk.FwOp, name) == value for name, value in attributes.items())
    triton_splitk.set_autotuner_cache({"key": 1}, 8)
    assert triton_splitk.get_autotuner_cache(8) == {"key": 1} and triton_splitk.get_autotuner_cache(1) == {}


@pytest.mark.parametrize("splits", triton_splitk.FwOp_Map)
def test_any_number_of_splits_gives_the_same(splits):
    inp = inputs(nq=3, nk=300, head_dim=16, dtype=F16)
    expected = fmha.memory_efficient_attention_forward(*inp._tensors())
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*inp._tensors(), op=triton_splitk.FwOp_Map[splits])
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=2e-3)
    assert lse.shape == (1, 2, 3) and lse.dtype == F32


def test_merging_helpers_of_split_k():
    """Parts [batch, groups, heads, parts, seqlen, head_dim], merged into given tensors."""
    parts = [qkv(2, 5, 5, (3, 2), 8, requires_grad=False, seed=i)[0] for i in range(4)]
    lses = [torch.randn(2, 3, 2, 5) for _ in parts]
    expected, expected_lse = fmha.merge_attentions(parts, lses)
    out, lse = torch.empty(2, 5, 3, 2, 8), torch.empty(2, 3, 2, 5)
    stacked = torch.stack([part.permute(0, 2, 3, 1, 4) for part in parts], 3)
    triton_splitk.merge_attentions(out, lse, stacked, torch.stack(lses, 3))
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    again = torch.empty_like(out)
    triton_splitk.merge_attentions_varargs(again, None, parts, lses)
    assert torch.equal(again, expected)
    leaves = [x.clone().requires_grad_() for x in (*parts, *lses)]
    grads = (torch.randn_like(out), torch.randn_like(lse))
    wanted = torch.autograd.grad(fmha.merge_attentions(leaves[:4], leaves[4:]), leaves, grads)
    dattn, dlse = triton_splitk.merge_attentions_varargs_backward(parts, lses, out, lse, *grads)
    for got, want in zip([*dattn, *dlse], wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads", [(2,), (2, 2)], ids=["4d", "5d"])
def test_integer_keys_of_split_k(heads):
    """int4: a coefficient word per group, then eight codes a word; all scales 1, shifts 0, codes as given."""
    codes = torch.randint(0, 16, (1, 20, *heads, 64))
    words = torch.zeros(1, 20, *heads, 8, dtype=torch.int64)
    for i in range(8):
        words |= codes[..., i::8] << (4 * i)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    one = torch.tensor([1.0, 0.0], dtype=F16).view(torch.int32)
    query = qkv(1, 3, 1, heads, 64, dtype=BF16, requires_grad=False)[0]
    plain = codes.to(BF16)
    expected = fmha.memory_efficient_attention(query, plain, plain)
    for groups in (1, 2, 4, 8):
        packed = torch.cat([one.expand(1, 20, *heads, groups), words], -1)
        op = type(f"FwOp_{groups}", (triton_splitk.FwOp,), {"NUM_GROUPS": groups, "NAME": f"mine{groups}"})
        out = fmha.memory_efficient_attention_forward(query, packed, packed, op=op)
        assert out.shape == query.shape
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
        assert torch.equal(fmha.memory_efficient_attention(query, packed, packed), out)  # groups from the shape
        wrong = triton_splitk.FwOp if groups != 1 else type("Two", (triton_splitk.FwOp,), {"NUM_GROUPS": 2})
        with pytest.raises(ValueError):
            fmha.memory_efficient_attention_forward(query, packed, packed, op=wrong)


def test_float8_keys_of_split_k():
    values = torch.randn(1, 20, 2, 64).to(torch.float8_e4m3fn)
    words = values.view(torch.int32)
    coefficients = torch.tensor([0.5, 0.25], dtype=F16).view(torch.int32).expand(1, 20, 2).contiguous()
    query = qkv(1, 3, 1, (2,), 64, dtype=BF16, requires_grad=False)[0]
    inp = triton_splitk.InputsFp8(query, words, words, k_fp8_scale_shift=coefficients, v_fp8_scale_shift=coefficients)
    assert inp.nbytes == 2 * query.numel() + 8 * words.numel() + 8 * coefficients.numel()
    plain = (values.float() * 0.5 + 0.25).to(BF16)
    expected = fmha.memory_efficient_attention(query, plain, plain)
    for op in (None, triton_splitk.FwOp):
        out = fmha._memory_efficient_attention_forward(inp, op=op)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
        again, context = fmha._memory_efficient_attention_forward_requires_grad(inp, op=op)
        assert torch.equal(again, out) and context.lse.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="give k_fp8_scale_shift and v_fp8_scale_shift"):
        fmha._memory_efficient_attention_forward(
            triton_splitk.InputsFp8(query, words, words, k_fp8_scale_shift=coefficients), op=None
        )
