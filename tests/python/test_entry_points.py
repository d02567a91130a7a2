"""The entry points with named operators: which pairs go together, autocast, dropout, checkpointing."""

import pytest
import torch
from attention_inputs import qkv, random
from fmha_inputs import BACKWARDS, BF16, F32, F64, FORWARDS, half, name
from torch.utils.checkpoint import checkpoint
from xformers.ops.fmha import attn_bias as ab
from xformers.ops.fmha import cutlass, flash, triton_splitk

from xformers.ops import (
    fmha,
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
)


@pytest.mark.parametrize("forward", FORWARDS, ids=name)
def test_forward_by_name(forward):
    inputs = half(requires_grad=False)
    out = memory_efficient_attention_forward(*inputs, op=forward)
    assert torch.equal(out, memory_efficient_attention(*inputs)) and out.dtype == BF16
    assert torch.equal(out, memory_efficient_attention(*inputs, op=(forward, None)))


@pytest.mark.parametrize("forward", [op for op in FORWARDS if op is not triton_splitk.FwOp], ids=name)
@pytest.mark.parametrize("backward", [None, *BACKWARDS], ids=name)
def test_any_pair_without_packed_sequences(forward, backward):
    inputs = half()
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).square().sum(), inputs)
    out = memory_efficient_attention(*inputs, op=(forward, backward))
    got = torch.autograd.grad(out.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("forward", [None, cutlass.FwOp, flash.FwOp], ids=name)
@pytest.mark.parametrize("backward", [None, cutlass.BwOp, flash.BwOp], ids=name)
@pytest.mark.parametrize("sequences", [1, 2])
def test_pairs_with_packed_sequences(forward, backward, sequences):
    inputs = half()
    bias = ab.BlockDiagonalMask.from_seqlens([40 // sequences] * sequences)
    mixed = None not in (forward, backward) and forward.VARLEN_LSE_PACKED != backward.VARLEN_LSE_PACKED
    if mixed and sequences == 2:
        with pytest.raises(ValueError) as error:
            memory_efficient_attention(*inputs, bias, op=(forward, backward))
        assert forward.NAME in str(error.value) and backward.NAME in str(error.value)
        return
    out = memory_efficient_attention(*inputs, bias, op=(forward, backward))
    expected = memory_efficient_attention(*inputs, bias)
    assert torch.equal(out, expected)
    got, want = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_dropout_keeps_to_one_backend():
    inputs = half()
    for pair in ((cutlass.FwOp, flash.BwOp), (flash.FwOp, cutlass.BwOp)):
        with pytest.raises(ValueError) as error:
            memory_efficient_attention(*inputs, p=0.3, op=pair)
        assert (
            pair[0].NAME in str(error.value) and pair[1].NAME in str(error.value) and "leave op out" in str(error.value)
        )
    for pair in ((cutlass.FwOp, cutlass.BwOp), (flash.FwOp, None), (None, flash.BwOp)):
        torch.manual_seed(3)
        out = memory_efficient_attention(*inputs, p=0.3, op=pair)
        torch.manual_seed(3)
        assert torch.equal(out, memory_efficient_attention(*inputs, p=0.3))


def test_a_forward_without_backward_meets_any_refusal_where_gradients_are_wanted():
    bias = ab.BlockDiagonalPaddedKeysMask.from_seqlens([20, 20], 20, [13, 20])
    inputs = half()
    with pytest.raises((ValueError, NotImplementedError)):
        memory_efficient_attention(*inputs, bias, op=(flash.FwOp, flash.BwOp))
    with torch.no_grad():
        memory_efficient_attention(*inputs, bias, op=(flash.FwOp, flash.BwOp))
    assert all(
        grad is not None for grad in torch.autograd.grad(memory_efficient_attention(*inputs, bias).sum(), inputs)
    )  # without a name it works


@pytest.mark.parametrize("op", ["flash", flash.FwOp(), (flash.FwOp,), (flash.BwOp, flash.FwOp), 3, [None, None]])
def test_what_is_no_operator(op):
    with pytest.raises(ValueError, match="expected a pair of a forward and a backward operator class"):
        memory_efficient_attention(*half(), op=op)


def test_pair_of_none_is_no_choice():
    inputs = half(dtype=F64)
    assert torch.equal(memory_efficient_attention(*inputs, op=(None, None)), memory_efficient_attention(*inputs))


def test_only_the_bias_requires_grad():
    query, key, value = half(dtype=F32, requires_grad=False)
    bias = random((1, 2, 40, 40), seed=4, requires_grad=True)
    out = memory_efficient_attention(query, key, value, bias, op=fmha.MemoryEfficientAttentionCutlassOp)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    assert (grad != 0).any()
    with torch.no_grad():
        assert not memory_efficient_attention(query, key, value, bias).requires_grad


def test_layouts_by_name():
    for heads in ((), (2,), (2, 2)):
        inputs = half(heads=heads, requires_grad=False)
        out, lse = memory_efficient_attention_forward_requires_grad(*inputs, op=cutlass.FwOp)
        assert out.shape == inputs[0].shape and lse.shape == (1, *(heads or (1,)), 64)
        got = memory_efficient_attention_backward(out, out, lse, *inputs, op=None)
        assert [x.shape for x in got] == [x.shape for x in inputs]


def test_autocast_by_name():
    inputs = half(dtype=F32, heads=(4,))
    shared = inputs[1][:, :, :1].detach().requires_grad_()
    with torch.autocast("cpu", BF16):
        out = memory_efficient_attention(
            inputs[0], shared.expand(-1, -1, 4, -1), inputs[2], op=(flash.FwOp, flash.BwOp)
        )
        expected = memory_efficient_attention(inputs[0], shared.expand(-1, -1, 4, -1), inputs[2])
    assert out.dtype == BF16 and torch.equal(out, expected)
    grad, wanted = (torch.autograd.grad(x.sum(), shared)[0] for x in (out, expected))
    assert grad.dtype == F32 and torch.equal(grad, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("op", [None, (cutlass.FwOp, None), (flash.FwOp, flash.BwOp)], ids=["any", "cutlass", "flash"])
def test_checkpoint(op, use_reentrant):
    """The recomputed forward draws the same dropout mask."""
    inputs = half()

    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, ab.LowerTriangularMask(), 0.3, op=op)

    grads = []
    for call in (attend, lambda *args: checkpoint(attend, *args, use_reentrant=use_reentrant)):
        for x in inputs:
            x.grad = None
        torch.manual_seed(2)
        call(*inputs).square().sum().backward()
        grads.append([x.grad for x in inputs])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_torch_func_and_double_backward_by_name():
    inputs = half()

    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, op=fmha.MemoryEfficientAttentionFlashAttentionOp).float().sum()

    expected = torch.autograd.grad(attend(*inputs), inputs)
    got = torch.func.grad(attend, argnums=(0, 1, 2))(*(x.detach() for x in inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    (grad,) = torch.autograd.grad(attend(*inputs), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="xformers::attention_backward is not implemented"):
        grad.sum().backward()


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    def count(bias, backward, nq=64, nk=64):
        inputs = qkv(2, nq, nk, (3,), 16, head_dim_v=8)
        with FlopCounterMode(display=False) as counter:
            out = memory_efficient_attention(*inputs, bias)
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    full = 2 * 3 * 2 * 64 * 64 * (16 + 8)
    assert count(None, False) == full and count(None, True) == full * 7 // 2
    assert count(ab.LowerTriangularMask(), False) == full // 2
    assert count(ab.LowerTriangularFromBottomRightMask(), True, nk=80) == 2 * 3 * (2 * 64 * 16 + 64 * 64) * 24 * 7 // 2
    query, key, value = qkv(1, 5, 7, (3,), 16)
    with FlopCounterMode(display=False) as counter:
        memory_efficient_attention(query, key, value, ab.BlockDiagonalMask.from_seqlens([2, 3], [3, 4]))
    assert counter.get_total_flops() == 3 * 2 * (2 * 3 + 3 * 4) * 32


def test_flops_of_the_operators_of_old():
    from torch.utils.flop_counter import FlopCounterMode

    query, key, value = qkv(1, 8, 8, (2,), 16, dtype=BF16, requires_grad=False)
    offsets = torch.tensor([0, 3, 8], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        torch.ops.xformers.efficient_attention_forward_cutlass(
            query, key, value, None, None, None, None, None, 0.0, 1, True
        )
    assert counter.get_total_flops() == 2 * 2 * 8 * 8 * 32 // 2
    with FlopCounterMode(display=False) as counter:
        torch.ops.xformers_flash.flash_fwd(
            query[0], key[0], value[0], offsets, offsets, None, 5, 5, 0.0, 0.25, False, -1, -1, False, None
        )
    assert counter.get_total_flops() == 2 * 2 * (3 * 3 + 5 * 5) * 32


@pytest.mark.wall_clock
def test_overhead_in_python():
    """A tiny call costs at most 25 microseconds more than PyTorch's own; the best of many, so load does not count."""
    import time

    query = torch.randn(1, 16, 2, 16)
    heads_first = query.transpose(1, 2).contiguous()

    def best(call):
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times) * 1e6

    ours = best(lambda: memory_efficient_attention(query, query, query))
    theirs = best(lambda: torch.nn.functional.scaled_dot_product_attention(heads_first, heads_first, heads_first))
    assert ours <= theirs + 25, f"{ours:.1f} us, expected at most {theirs:.1f} + 25 us"
