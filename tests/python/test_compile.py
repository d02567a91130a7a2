"""torch.compile(fullgraph=True): forward and backward, static and dynamic, without recompiling for every size."""

import pytest
import torch
import torch._dynamo
from attention_inputs import qkv, random
from torch._dynamo.testing import CompileCounterWithBackend
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention

MASKS = {
    "none": None,
    "causal": LowerTriangularMask(),
    "causal_bottom_right": LowerTriangularFromBottomRightMask(),
    "local": LocalAttentionFromBottomRightMask(2, 1),
    "packed": BlockDiagonalMask.from_seqlens([2, 3], [3, 4]),
    "packed_causal": BlockDiagonalCausalMask.from_seqlens([2, 3], [3, 4]),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def error_on_recompile(after_first):
    return torch._dynamo.config.patch(error_on_recompile=after_first)


def assert_same(compiled, eager, inputs):
    results = []
    for fn in (compiled, eager):
        torch.manual_seed(1)
        out = fn(*inputs)
        results.append((out, *torch.autograd.grad(out.sum(), [x for x in inputs if x.requires_grad])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=False))


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, p):
    def attend(q, k, v):
        return memory_efficient_attention(q * 2, k, v, MASKS[name], p) + 1

    assert_same(torch.compile(attend, fullgraph=True, backend="aot_eager"), attend, qkv(batch=1))


def test_mask_as_an_argument_and_built_inside():
    def attend(q, k, v, mask=None):
        return memory_efficient_attention(q, k, v, LowerTriangularMask() if mask is None else mask, scale=0.5)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    inputs = qkv(batch=1)
    assert_same(compiled, attend, inputs)
    for mask in MASKS.values():
        assert torch.equal(compiled(*inputs, mask), attend(*inputs, mask))


@pytest.mark.parametrize("boolean", [False, True])
def test_tensor_bias(boolean):
    bias = random((2, 3, 5, 7), seed=3, requires_grad=not boolean)
    inputs = [*qkv(), bias > 0 if boolean else bias]
    compiled = torch.compile(memory_efficient_attention, fullgraph=True, backend="aot_eager")
    assert_same(compiled, memory_efficient_attention, inputs)


def test_grouped_query_heads():
    def attend(q, k, v):
        k, v = (x.expand(-1, -1, -1, q.shape[3], -1) for x in (k, v))
        return memory_efficient_attention(q, k, v)

    query, key, value = qkv(heads=(2, 3))
    inputs = [query, *(x[:, :, :, :1].detach().requires_grad_() for x in (key, value))]
    assert_same(torch.compile(attend, fullgraph=True, backend="aot_eager"), attend, inputs)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dynamic_sizes_compile_once(p):
    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, LowerTriangularMask(), p)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, nq, nk, heads, head_dim in [(2, 5, 7, 3, 8), (3, 9, 11, 4, 16), (4, 21, 6, 5, 12), (5, 33, 41, 6, 10)]:
        inputs = qkv(batch, nq, nk, (heads,), head_dim)
        with error_on_recompile(after_first=batch > 2):
            assert_same(compiled, attend, inputs)


def test_dynamic_packed_sequences_compile_once():
    def attend(q, k, v, mask):
        return memory_efficient_attention(q, k, v, mask)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([2, 9], [4, 5, 6], [9, 1, 7, 8]):  # no two sizes are equal at first, or they would stay tied
        mask = BlockDiagonalCausalMask.from_seqlens(lengths)
        inputs = qkv(batch=1, nq=sum(lengths), nk=sum(lengths), heads=(4,))
        with error_on_recompile(after_first=len(lengths) > 2):
            assert torch.equal(compiled(*inputs, mask), attend(*inputs, mask))


def test_varying_windows_compile_at_most_twice():
    counter = CompileCounterWithBackend("aot_eager")

    def attend(q, k, v, left):
        return torch.ops.xformers.attention_forward(q, k, v, None, left, 2)[0]

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    inputs = qkv()
    for left in range(2, 8):
        assert torch.equal(compiled(*inputs, left), attend(*inputs, left))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic):
    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, LowerTriangularMask(), 0.4)

    assert_same(torch.compile(attend, fullgraph=True, dynamic=dynamic), attend, qkv())


def test_inductor_with_generated_code_around():
    def attend(q, k, v):
        return memory_efficient_attention(q.sin(), k, v, LowerTriangularMask())

    inputs = qkv(dtype=torch.float64)
    compiled = torch.compile(attend, fullgraph=True)
    results = [(out, *torch.autograd.grad(out.sum(), inputs)) for out in (compiled(*inputs), attend(*inputs))]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_compiled_autograd():
    from torch._dynamo import compiled_autograd

    bias = random((2, 3, 5, 7), seed=3, requires_grad=True)
    inputs = [*qkv(), bias]
    for p in (0.0, 0.4):
        out = memory_efficient_attention(*inputs, p)
        expected = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            out.square().sum().backward()
        assert all(torch.equal(x.grad, grad) for x, grad in zip(inputs, expected, strict=False))
        for x in inputs:
            x.grad = None


def test_errors_are_readable():
    query, key, value = qkv()
    compiled = torch.compile(memory_efficient_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="key.heads is 2, expected 3"):
        compiled(query, key[:, :, :2], value)
