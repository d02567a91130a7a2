"""Autocast: inputs are taken in the region's dtype, gradients come back in the inputs' own."""

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha.attn_bias import LowerTriangularMask

from xformers.ops import memory_efficient_attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_inputs_and_gradients(dtype):
    query, key, value = qkv()
    with torch.autocast("cpu", dtype):
        out = memory_efficient_attention(query, key, value, LowerTriangularMask())
    assert out.dtype == dtype
    low = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
    expected = memory_efficient_attention(*low, LowerTriangularMask())
    assert torch.equal(out, expected)
    out.sum().backward()
    expected.sum().backward()
    for x, y in zip((query, key, value), low, strict=False):
        assert x.grad.dtype == torch.float32 and torch.equal(x.grad, y.grad.float())


def test_mixed_dtypes_and_bias_meet():
    query, key, value = qkv()
    bias = random((2, 3, 5, 7), seed=3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = memory_efficient_attention(query.bfloat16(), key, value.double().float(), bias)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32


def test_expanded_heads_stay_expanded():
    query, key, value = qkv(heads=(4,))
    one = key[:, :, :1].detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        memory_efficient_attention(query, one.expand(-1, -1, 4, -1), value).sum().backward()
    casts = [e.input_shapes[0] for e in profile.events() if e.name == "aten::_to_copy" and e.input_shapes[0]]
    assert list(one.shape) in [list(shape) for shape in casts]
    assert one.grad.shape == one.shape


def test_boolean_mask_stays_boolean():
    query, key, value = qkv()
    mask = random((2, 3, 5, 7), seed=3) > 0
    with torch.autocast("cpu", torch.bfloat16):
        out = memory_efficient_attention(query, key, value, mask)
    expected = memory_efficient_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    assert torch.equal(out, expected)


def test_fp64_is_left_alone():
    inputs = qkv(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert memory_efficient_attention(*inputs).dtype == torch.float64


def test_compiled():
    inputs = qkv(requires_grad=False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return memory_efficient_attention(q, k, v)

    with torch.autocast("cpu", torch.bfloat16):
        expected = memory_efficient_attention(*inputs)
    assert torch.equal(attend(*inputs), expected)
