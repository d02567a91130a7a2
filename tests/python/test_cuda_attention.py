"""What only a GPU can show: streams, graphs, sizes beyond 32 bits, repeatable bits. Skipped where there is none."""

import pytest
import torch
from devices import needs_cuda

import xformers.ops as xops

pytestmark = needs_cuda


def inputs(batch, seqlen, heads, dim, dtype=torch.bfloat16, requires_grad=False):
    shape = (batch, seqlen, heads, dim)
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=requires_grad) for _ in range(3)]


def sdpa(q, k, v, **kwargs):
    q, k, v = (t.transpose(1, 2).float() for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **kwargs).transpose(1, 2)


def error(got, expected):
    return ((got.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graph_replay_follows_its_inputs(dtype):
    q, k, v = inputs(2, 300, 3, 64, dtype, requires_grad=True)
    dout = torch.randn_like(q)

    def step():
        out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
        return (out, *torch.autograd.grad(out, (q, k, v), dout))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in (q, k, v):
            tensor.normal_()
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, expected)


def test_two_streams_at_once():
    cases = [inputs(2, 700 + 100 * i, 4, 64) for i in range(2)]
    expected = [xops.memory_efficient_attention(*case) for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    got = [[], []]
    for _ in range(20):
        for i, (stream, case) in enumerate(zip(streams, cases, strict=True)):
            with torch.cuda.stream(stream):
                got[i].append(xops.memory_efficient_attention(*case))
    torch.cuda.synchronize()
    for results, one in zip(got, expected, strict=True):
        assert all(torch.equal(result, one) for result in results)


def test_70000_heads_and_batches():
    q, k, v = inputs(700, 5, 100, 16, requires_grad=True)
    out = xops.memory_efficient_attention(q, k, v)
    out.backward(torch.ones_like(out))
    reference = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = sdpa(*reference)
    expected.backward(torch.ones_like(expected))
    assert error(out, expected) < 1e-2
    for tensor, exact in zip((q, k, v), reference, strict=True):
        assert error(tensor.grad, exact.grad) < 2e-2


def test_131072_tokens():
    length, rows = 2**17, 64
    q, k, v = inputs(1, length, 1, 64)
    out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
    scores = (q[0, -rows:, 0].double() @ k[0, :, 0].double().T) / 8
    keys = torch.arange(length, device="cuda")
    scores.masked_fill_(keys > keys[-rows:, None], float("-inf"))
    assert error(out[0, -rows:, 0], scores.softmax(-1) @ v[0, :, 0].double()) < 1e-2


def test_tensors_beyond_32_bits():
    heads, dim, seqlen = 2, 64, 70
    stride = 2**31 // 64 + 64  # of a row, in elements: row 64 begins past 2^31
    memory = [torch.zeros(seqlen * stride, device="cuda", dtype=torch.float16) for _ in range(3)]
    shape, strides = (1, seqlen, heads, dim), (seqlen * stride, stride, dim, 1)
    q, k, v = (m.as_strided(shape, strides).normal_() for m in memory)
    assert error(xops.memory_efficient_attention(q, k, v), sdpa(q, k, v)) < 2e-3


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_deterministic_mode_repeats(dim):
    torch.use_deterministic_algorithms(True)
    try:
        q, k, v = inputs(1, 1500, 4, dim, requires_grad=True)
        out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
        dout = torch.randn_like(out)
        first = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        for _ in range(5):
            again = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_dropout_is_the_cpus():
    state = torch.tensor([1234, 5678])
    q, k, v = inputs(2, 90, 3, 32, torch.float32)
    forward = torch.ops.xformers.attention_forward
    got, _, _ = forward(q, k, v, p=0.4, philox_state=state)
    on_device, _, _ = forward(q, k, v, p=0.4, philox_state=state.cuda())
    expected, _, _ = forward(q.cpu(), k.cpu(), v.cpu(), p=0.4, philox_state=state)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(got, on_device)
