"""Calls captured into CUDA graphs, and calls during which the host must not wait for the GPU."""

import pytest
import torch
from devices import needs_cuda

import xformers.ops as xops
from xformers.ops import fmha

pytestmark = needs_cuda
attn_bias = fmha.attn_bias


def inputs(*shape, dtype=torch.bfloat16, requires_grad=True):
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=requires_grad) for _ in range(3)]


def attend(qkv, bias=None, p=0.0):
    out = xops.memory_efficient_attention(*qkv, attn_bias=bias, p=p)
    return (out, *torch.autograd.grad(out, qkv, torch.ones_like(out)))


def packed():
    qkv = inputs(1, 300, 3, 64)
    bias = attn_bias.BlockDiagonalCausalMask.from_seqlens([120, 7, 173], device=qkv[0].device)
    return qkv, lambda: attend(qkv, bias)


def dense():
    qkv = inputs(2, 200, 3, 64)
    return qkv, lambda: attend(qkv, xops.LowerTriangularMask())


def stacked():
    (qkv,) = inputs(2, 200, 3, 3, 64)[:1]
    return [qkv], lambda: torch.autograd.grad(
        xops.memory_efficient_attention(*xops.unbind(qkv, 2)), qkv, torch.ones_like(qkv[:, :, 0])
    )


def padded_keys():
    q = torch.randn(1, 6, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(1, 3 * 50, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    bias = attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[1, 3, 2], kv_padding=50, kv_seqlen=[50, 3, 20], device=q.device
    )
    return [q, k, v], lambda: attend([q, k, v], bias)


def paged_keys():
    q = torch.randn(1, 3, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(1, 4 * 16, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    padded = attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[1, 1, 1], kv_padding=32, kv_seqlen=[32, 3, 20], device=q.device
    )
    pages = torch.tensor([[3, 1], [0, 0], [1, 2]], dtype=torch.int32, device="cuda")
    bias = padded.make_paged(block_tables=pages, page_size=16,
                             paged_type=attn_bias.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask)  # fmt: skip
    return [q, k, v], lambda: attend([q, k, v], bias)


def decoding():
    q = torch.randn(4, 1, 2, 4, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(4, 3000, 2, 1, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    shape = (4, 3000, 2, 4, 128)
    return [q, k, v], lambda: (xops.memory_efficient_attention(q, k.expand(shape), v.expand(shape)),)


def merging():
    attn = [torch.randn(2, 30, 3, 64, device="cuda", requires_grad=True) for _ in range(30)]
    lse = [torch.randn(2, 3, 30, device="cuda", requires_grad=True) for _ in range(30)]

    def call():
        out, total = xops.fmha.merge_attentions(attn, lse)
        return (out, total, *torch.autograd.grad((out.sum() + total.sum()), (*attn, *lse)))

    return [*attn, *lse], call


CALLS = {f.__name__: f for f in (dense, packed, stacked, padded_keys, paged_keys, decoding, merging)}


def capture(call):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize("name", CALLS)
def test_graph_replay_follows_its_inputs(name):
    tensors, call = CALLS[name]()
    graph, captured = capture(call)
    filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(8)]  # over memory that was given back
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_()
    graph.replay()
    del filler
    for got, expected in zip(captured, call(), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", CALLS)
def test_the_host_never_waits(name):
    _, call = CALLS[name]()
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def weights(p):
    """What dropout left of softmax's weights: [batch, heads, queries, keys]."""
    q = torch.randn(2, 64, 3, 64, device="cuda", dtype=torch.bfloat16)
    eye = torch.eye(64, device="cuda", dtype=torch.bfloat16).expand(2, 3, 64, 64).transpose(1, 2)
    return lambda: xops.memory_efficient_attention(q, q, eye, p=p).transpose(1, 2)


def test_each_replay_draws_a_new_mask():
    call = weights(0.5)
    graph, out = capture(call)
    masks = []
    for _ in range(3):
        graph.replay()
        masks.append(out == 0)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    for mask in masks:
        assert 0.45 < mask.float().mean().item() < 0.55


@pytest.mark.parametrize("seed", [torch.manual_seed, torch.cuda.manual_seed])
def test_dropout_repeats_after_a_seed(seed):
    call = weights(0.3)
    seed(7)
    first, second = call(), call()
    seed(7)
    assert torch.equal(call(), first) and torch.equal(call(), second) and not torch.equal(first, second)


def test_compiled_calls_draw_masks_of_their_own():
    q = torch.randn(1, 64, 2, 64, device="cuda", requires_grad=True)
    eye = torch.eye(64, device="cuda").expand(1, 2, 64, 64).transpose(1, 2)

    def twice(q):
        return [xops.memory_efficient_attention(q, q, eye, p=0.5) for _ in range(2)]

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.manual_seed(2)
    expected = twice(q)
    torch.manual_seed(2)
    got = compiled(q)
    assert not torch.equal(got[0] == 0, got[1] == 0)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


def test_forward_and_backward_drop_the_same():
    qkv = inputs(1, 100, 2, 64, dtype=torch.float32)
    torch.manual_seed(3)
    out = xops.memory_efficient_attention(*qkv, p=0.4)
    got = torch.autograd.grad(out, qkv, torch.ones_like(out))
    torch.manual_seed(3)
    state = torch.ops.xformers.draw_philox_state(device=torch.device("cuda"))
    on_cpu = [t.detach().cpu().requires_grad_() for t in qkv]
    expected_out, _, _ = torch.ops.xformers.attention_forward(*on_cpu, p=0.4, philox_state=state.cpu())
    torch.testing.assert_close(out.cpu(), expected_out, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(expected_out, on_cpu, torch.ones_like(expected_out))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.cpu(), e, rtol=1e-4, atol=1e-4)


def test_random_state_of_a_generator():
    draw = torch.ops.xformers.draw_philox_state
    device = torch.device("cuda")
    generator = torch.Generator(device="cuda")
    states = []
    for seed in (1, 1, 2):
        generator.manual_seed(seed)
        states.append(draw(device=device, generator=generator))
    assert all(s.device.type == "cuda" and s.dtype == torch.int64 and s.shape == (2,) for s in states)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    from_cpu = [draw(device=d, generator=torch.Generator().manual_seed(5)) for d in (device, torch.device("cpu"))]
    assert torch.equal(from_cpu[0].cpu(), from_cpu[1])
