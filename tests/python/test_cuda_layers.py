"""Rotary embeddings, gates and fused dropout on a GPU alone: large sizes, repeatable bits, memory, graphs."""

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import assert_close
from devices import NO_CUDA
from test_rope_padded import assert_turned, frequencies
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask

from xformers.ops import SwiGLU, rope_padded

pytestmark = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
ops = torch.ops.xformers
STATE = torch.tensor([2**40 + 17, 2**33 + 5])


@pytest.fixture(autouse=True)
def on_gpu():
    with torch.device("cuda"):
        yield
    torch.cuda.empty_cache()


def tokens(lengths, used, padding, heads, dtype=torch.bfloat16, head_dim=128):
    bias = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=lengths, kv_padding=padding, kv_seqlen=used, device=torch.device("cuda")
    )
    xq, xk, xv = (torch.randn(1, sum(lengths), h, head_dim, dtype=dtype) for h in (heads, 1, 1))
    caches = (torch.zeros(1, padding * len(lengths), 1, head_dim, dtype=dtype) for _ in range(2))
    return bias, (xq, xk, xv, *caches)


@pytest.mark.parametrize("adjacents", [True, False])
def test_rope_of_more_than_two_to_the_31_elements(adjacents):
    """Queries beyond 2^16 rows and 2^31 elements; sequences of two lengths, so that the first guess is wrong."""
    lengths = [2**16 + 3, 1, 2**17 - 1]
    bias, tensors = tokens(lengths, [length + 10 for length in lengths], 2**17 + 9, heads=96)
    assert tensors[0].numel() > 2**31
    out = rope_padded(*tensors, bias, adjacents=adjacents)
    starts, freqs = [0, lengths[0], lengths[0] + 1], frequencies(128)
    for b, row in ((0, 0), (0, 2**16 + 2), (1, 0), (2, 0), (2, 2**17 - 2)):
        index, position = starts[b] + row, torch.tensor([row + 10])
        assert_turned(out[0, index : index + 1], tensors[0][0, index : index + 1], position, freqs, adjacents)
        slot = b * (2**17 + 9) + row + 10
        assert_turned(tensors[3][0, slot : slot + 1], tensors[1][0, index : index + 1], position, freqs, adjacents)
        assert torch.equal(tensors[4][0, slot], tensors[2][0, index])
    assert not bool(tensors[4][0, :10].any()) and not bool(tensors[4][0, lengths[0] + 10 : 2**17 + 9].any())


def test_rotary_of_more_than_two_to_the_31_elements():
    x = torch.randn(2**10 + 1, 2**14, 128, dtype=torch.bfloat16)
    out = ops.rotary(x)
    for row, position in ((0, 1), (2**10, 2**14 - 1)):
        assert_turned(
            out[row, position][None], x[row, position][None], torch.tensor([position]), frequencies(128), False
        )


def test_gates_of_more_than_two_to_the_31_elements():
    rows, width = 2**17 + 1, 2**13 + 8
    x1x2 = torch.randn(rows, 2, width, dtype=torch.bfloat16)
    x1, x2 = x1x2.unbind(1)
    out = ops.silu_gate(x1, x2)
    last = slice(rows - 2, rows)
    assert_close(out[last], F.silu(x1[last].double()) * x2[last].double(), roundings=1.02)
    before = x1x2[last].double()
    sums = ops.silu_gate_backward_out(x1, x2, out, x1x2, False, True)  # dx1dx2 in place
    assert_close(x1x2[last][:, 1], out[last].double() * F.silu(before[:, 0]), roundings=1.02)
    assert_close(sums[1, :5], x1x2[:, 1, :5].double().sum(0), scale=rows**0.5)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_fused_dropout_of_more_than_two_to_the_31_elements(activation):
    rows, width = 2**17 + 1, 2**14 + 8
    x, bias = torch.randn(rows, width, dtype=torch.bfloat16), torch.randn(width)
    out = ops.bias_act_dropout(x, bias, None, activation, 0.25, STATE)
    for row in (0, rows - 1):  # a row's mask depends on its number alone
        alone = ops.bias_act_dropout(x[: row + 1][-1:], bias, None, activation, 0.0)
        kept = out[row] != 0
        assert abs(kept.double().mean().item() - 0.75) < 0.02
        assert torch.allclose(out[row][kept].float(), alone[0][kept].float() / 0.75, rtol=1e-2)
    dx, _ = ops.bias_act_dropout_backward(x, x, bias, activation, 0.25, STATE, True, False)
    assert bool((dx[-1][out[-1] == 0] == 0).all())


@pytest.mark.parametrize("rows", [1, 33, 5000])
def test_sums_have_the_same_bits_again(rows):
    x1, x2, grad = (torch.randn(rows, 1096, dtype=torch.bfloat16) for _ in range(3))
    both = torch.empty(rows, 2, 1096, dtype=torch.bfloat16)
    calls = (
        lambda: ops.silu_gate_backward_out(x1, x2, grad, both, False, True),
        lambda: ops.bias_act_dropout_backward(grad, x1, x2[0], "gelu", 0.3, STATE)[1],
    )
    for call in calls:
        first = call()
        assert all(torch.equal(first, call()) for _ in range(3))


def test_sums_are_as_exact_as_their_terms():
    x1, x2, grad = (torch.randn(3001, 264) for _ in range(3))
    both = torch.empty(3001, 2, 264)
    sums = ops.silu_gate_backward_out(x1, x2, grad.clone(), both, False, True)
    assert_close(sums, both.double().sum(0), scale=200.0)
    dx, dbias = ops.bias_act_dropout_backward(grad, x1, x2[0], "gelu", 0.3, STATE)
    assert_close(dbias, dx.double().sum(0), scale=200.0)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_takes_less_memory_than_eager(bias):
    rows, width, hidden = 16384, 1024, 2752
    module = SwiGLU(width, hidden, bias=bias).to(torch.bfloat16)
    x = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True)

    def eager(x):
        w1, b1, w2, b2, w3, b3 = module._ordered_params()
        return F.linear(F.silu(F.linear(x, w1, b1)) * F.linear(x, w2, b2), w3, b3)

    def peak(function):
        leaves = [x, *module.parameters()]
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            out = function(x)
            grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
            del out, grads
        return torch.cuda.max_memory_allocated()

    assert peak(module) <= 0.75 * peak(eager)


def test_in_a_graph():
    """Captured once, replayed on other data: offsets and dropout's state are read on the device."""
    bias, (xq, xk, xv, cache_k, cache_v) = tokens([4, 4], [4, 4], 16, heads=8)
    x, weight, state = torch.randn(64, 96), torch.randn(96), STATE.cuda()
    stream = torch.cuda.Stream()

    def step():
        q = rope_padded(xq, xk, xv, cache_k, cache_v, bias)
        h = ops.silu_gate(x, x)
        dx, sums = ops.bias_act_dropout_backward(x, x, weight, "gelu", 0.5, state)
        return q, h, ops.bias_act_dropout(x, weight, None, "gelu", 0.5, state), dx, sums, ops.rotary(x)

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    torch.cuda.synchronize()
    bias.k_seqinfo.seqlen.add_(5)  # both sequences have grown
    state.add_(1)
    x.normal_()
    xq.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert bool((cache_v[0, 5:9] == xv[0, :4]).all())
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_angles_of_many_positions():
    x = torch.randn(1, 8192, 64)
    for adjacents in (True, False):
        out = ops.rotary(x, 10000.0, adjacents)
        assert_turned(out[0], x[0], torch.arange(8192), frequencies(64), adjacents)
