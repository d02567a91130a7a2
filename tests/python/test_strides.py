"""Inputs and gradients anywhere in memory; expanded heads and biases are read where they lie."""

import subprocess
import sys

import pytest
import torch
from attention_inputs import STRIDES, qkv, random, with_strides
from attention_reference import check_attention
from hypothesis import given
from hypothesis import strategies as st
from xformers.ops.fmha.attn_bias import LowerTriangularMask

from xformers.ops import memory_efficient_attention


@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.parametrize("heads", [(), (3,), (2, 2)], ids=["3d", "4d", "5d"])
def test_result_is_contiguous_and_equal_for_all_strides(kind, heads):
    tensors = qkv(heads=heads, requires_grad=False)
    expected = memory_efficient_attention(*tensors)
    out = memory_efficient_attention(*(with_strides(x, kind) for x in tensors))
    assert out.is_contiguous() and torch.equal(out, expected)


@pytest.mark.parametrize("kind", STRIDES)
def test_incoming_gradient(kind):
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value)
    grad = random(out.shape, seed=7)
    expected = torch.autograd.grad(out, (query, key, value), grad, retain_graph=True)
    got = torch.autograd.grad(out, (query, key, value), with_strides(grad, kind))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 8), (1, 5, 3, 1)])
def test_expanded_incoming_gradient(shape):
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value)
    grad = random(shape, seed=7).expand(out.shape)
    expected = torch.autograd.grad(out, (query, key, value), grad.contiguous(), retain_graph=True)
    got = torch.autograd.grad(out, (query, key, value), grad)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False))


def test_packed_qkv():
    """q, k and v as views of one tensor, as a fused projection gives them."""
    fused = random((2, 9, 3, 4, 16), requires_grad=True)
    plain = [x.detach().contiguous().requires_grad_() for x in fused.unbind(2)]
    out = memory_efficient_attention(*fused.unbind(2), LowerTriangularMask())
    out.sum().backward()
    memory_efficient_attention(*plain, LowerTriangularMask()).sum().backward()
    assert torch.equal(fused.grad, torch.stack([x.grad for x in plain], 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4,), (2, 4)], ids=["4d", "5d"])
def test_expanded_heads(heads, dtype):
    query, key, value = qkv(nq=9, nk=21, heads=heads, dtype=dtype)
    one = [x[..., :1, :].detach().requires_grad_() for x in (key, value)]
    expanded = [x.expand(*key.shape[:-1], x.shape[-1]) for x in one]
    assert expanded[0].stride(-2) == 0

    def attend(q, k, v, _):
        return memory_efficient_attention(q, k, v, LowerTriangularMask())

    bias = LowerTriangularMask().materialize((9, 21))
    check_attention(attend, query, *expanded, bias=bias)
    # and down to the one head that is there
    memory_efficient_attention(query, *expanded, LowerTriangularMask()).sum().backward()
    full = [x.detach().contiguous().requires_grad_() for x in expanded]
    memory_efficient_attention(query, *full, LowerTriangularMask()).sum().backward()
    for x, y in zip(one, full, strict=False):
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
        torch.testing.assert_close(x.grad, y.grad.sum(-2, keepdim=True), rtol=tolerance, atol=tolerance)


def test_only_one_of_key_and_value_expanded():
    query, key, value = qkv(heads=(4,))
    check_attention(memory_efficient_attention, query, key, value[..., :1, :].expand(-1, -1, 4, -1))
    check_attention(memory_efficient_attention, query, key[..., :1, :].expand(-1, -1, 4, -1), value)


@given(
    kept=st.tuples(*[st.booleans()] * 4),
    offset=st.integers(0, 9),
    boolean=st.booleans(),
    last=st.sampled_from(["unit", "strided"]),
)
def test_bias_of_any_stride_and_alignment(kept, offset, boolean, last):
    """Broadcast dimensions (stride 0), odd row lengths and offsets, transposed memory."""
    query, key, value = qkv(nq=11, nk=23)
    full = (2, 3, 11, 23)
    shape = [size if keep else 1 for size, keep in zip(full, kept, strict=False)]
    wide = random((*shape[:-1], shape[-1] + 10), seed=3)
    bias = wide[..., offset : offset + shape[-1]]
    if last == "strided":
        bias = bias.transpose(-1, -2).contiguous().transpose(-1, -2)
    bias = (bias > -0.5) if boolean else bias
    check_attention(memory_efficient_attention, query, key, value, tensor_bias=bias.expand(full))


def test_gradient_of_an_expanded_bias_is_summed():
    query, key, value = qkv(dtype=torch.float64)
    bias = random((1, 3, 1, 7), torch.float64, seed=3, requires_grad=True)

    def attend(b):
        return memory_efficient_attention(query, key, value, b.expand(2, 3, 5, 7))

    assert torch.autograd.gradcheck(attend, (bias,))


PEAK_MEMORY = """
import re, torch, xformers
from xformers.ops import memory_efficient_attention as attend

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024  # MiB

torch.set_num_threads(2)
heads, seqlen, dim = 16, {seqlen}, 64
small = torch.randn(1, 8, 1, 8, requires_grad=True)
attend(small, small, small).sum().backward()          # libraries and threads are there
query = torch.randn(1, {queries}, heads, dim, requires_grad={grad})
key, value = (torch.randn(1, seqlen, {kv_heads}, dim).expand(-1, -1, heads, -1).requires_grad_({grad}) for _ in "kv")
open("/proc/self/clear_refs", "w").write("5")         # the peak starts here
before = status("VmRSS")
out = attend(query, key, value)
if {grad}:
    torch.autograd.grad(out, (query, key, value), out.detach())
print(status("VmHWM") - before)
"""


def peak_mib(**options) -> float:
    script = PEAK_MEMORY.format(**options)
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


def test_expanded_heads_are_not_copied():
    """Copies of key and value would take 2 x 16 heads x 16384 keys x 64 x 4 bytes = 128 MiB."""
    assert peak_mib(seqlen=16384, queries=4, kv_heads=1, grad=False) < 40


def test_memory_does_not_grow_with_the_square_of_the_sequence():
    """The score matrix would take 16 x 4096^2 x 4 bytes = 1 GiB; out and the gradients take 4 x 16 MiB."""
    assert peak_mib(seqlen=4096, queries=4096, kv_heads=16, grad=True) < 64 + 64
