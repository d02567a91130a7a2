"""Softcap, ALiBi and sinks through operators: gradients, opcheck, compile, modes, named operators, bad input."""

import math

import pytest
import torch
from attention_reference import assert_equal
from devices import on_each_device  # noqa: F401
from score_modifiers import FP64, HEADS, attention_forward, offsets, qkv, random
from torch.utils.checkpoint import checkpoint
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

MODIFIED = ("softcap", "alibi", "sinks", "all")


def modified(name, dtype=FP64):
    """Arguments of a call, on the default device."""
    choices = {
        "softcap": dict(softcap=1.5),
        "alibi": dict(alibi_slopes=torch.tensor([0.5, 0.1, 0.0], dtype=dtype)),
        "sinks": dict(sinks=torch.tensor([[0.5, -1.0, 2.0]], dtype=dtype)),
    }
    return {key: x for kind in choices for key, x in choices[kind].items() if name in (kind, "all")}


@pytest.mark.parametrize("name", MODIFIED)
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(name, packed):
    options = {key: x.requires_grad_() if key != "softcap" else x for key, x in modified(name).items()}
    tensors = [x for x in options.values() if isinstance(x, torch.Tensor)]
    bias = random((1, 1, 3, 4), FP64, 7).requires_grad_()
    mask = ab.BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3])
    if packed and "sinks" in options:
        options["sinks"] = options["sinks"].expand(2, HEADS)

    def run(q, k, v, bias, *_):
        operands = mask.with_bias(bias).lower(q.device)[:7] if packed else ()
        return attention_forward(q, k, v, *operands, need_lse=True, **options)[:2]

    assert torch.autograd.gradcheck(run, (*qkv(1), bias, *tensors))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", MODIFIED)
def test_opcheck_forward(name, requires_grad):
    inputs = tuple(qkv(1, requires_grad=requires_grad))
    torch.library.opcheck(attention_forward.default, inputs, dict(modified(name), need_lse=True))
    bias = random((1, 1, 3, 4), FP64, 7).requires_grad_(requires_grad)
    options = {key: x for key, x in modified(name).items() if key != "sinks"}
    torch.library.opcheck(attention_forward.default, (*inputs, bias), dict(options, **offsets()))


def test_opcheck_backward():
    inputs, options = qkv(1, requires_grad=False), modified("all")
    out, lse, _ = attention_forward(*inputs, **options, need_lse=True)
    wanted = dict(options, need_slopes_grad=True, need_sinks_grad=True)
    for arguments_given in (options, wanted):
        arguments = (torch.randn_like(out), *inputs, out, lse)
        torch.library.opcheck(torch.ops.xformers.attention_backward.default, arguments, arguments_given)
    q = inputs[0]
    out, lse, _ = attention_forward(q, q, q, **options, need_lse=True)
    stacked = torch.ops.xformers.attention_backward_stacked.default
    torch.library.opcheck(stacked, (torch.randn_like(out), q, q, q, out, lse), dict(wanted, stack_dim=2))


def results(fn, leaves):
    out = fn(*leaves)
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3])

    def fn(q, k, v, bias, slopes, sinks):
        options = dict(softcap=1.5, alibi_slopes=slopes, sinks=sinks)
        return memory_efficient_attention(q * 2, k, v, mask.with_bias(bias).make_causal(), **options) + 1

    leaves = [*qkv(1), random((1, 1, 3, 4), FP64, 7), random((HEADS,), FP64, 8), random((HEADS,), FP64, 9)]
    leaves = [x.detach().requires_grad_() for x in leaves]
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_equal(results(compiled, leaves), results(fn, leaves))


def test_checkpoint_and_autocast(device):
    leaves = [*qkv(1, dtype=torch.float32), random((1, 1, 3, 4), torch.float32, 7).requires_grad_()]
    leaves += [random((HEADS,), torch.float32, seed).abs().requires_grad_() for seed in (8, 9)]
    mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3])

    def fn(q, k, v, bias, slopes, sinks):
        options = dict(softcap=1.5, alibi_slopes=slopes, sinks=sinks)
        return memory_efficient_attention(q, k, v, mask.with_bias(bias), **options).float()

    again = results(lambda *x: checkpoint(fn, *x, use_reentrant=False), leaves)
    assert_equal(again, results(fn, leaves))
    out = checkpoint(fn, *leaves, use_reentrant=True)  # which knows no autograd.grad
    out.square().sum().backward()
    assert_equal([leaf.grad for leaf in leaves], again[1:])
    with torch.autocast(device, torch.bfloat16):
        cast, named = (
            results(fn, leaves),
            fmha.memory_efficient_attention_forward(
                *leaves[:3], mask.with_bias(leaves[3]), op=fmha.generic.FwOp, softcap=1.5, sinks=leaves[5].half()
            ),
        )
    assert named.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in cast[1:])
    torch.testing.assert_close(cast[0], fn(*leaves), rtol=2e-2, atol=2e-2)


class LooksOn(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*MODIFIED, "bias"])
def test_modes_that_look_on_lose_nothing(name):
    """Attention shows to them as an operator of old where that can say what is asked for, and here none can."""
    leaves, options, mask = qkv(1, dtype=torch.float32), modified(name, torch.float32), None
    if name == "bias":
        mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3]).with_bias(random((1, 1, 3, 4), torch.float32, 7))
    want = results(lambda *x: memory_efficient_attention(*x, mask, **options), leaves)
    with LooksOn():
        got = results(lambda *x: memory_efficient_attention(*x, mask, **options), leaves)
    assert_equal(got, want)


def test_named_operators():
    """generic takes all; flash and flash3 cap and tilt; the rest says why not."""
    q, k, v = qkv(2, 64, 64, dtype=torch.bfloat16, requires_grad=False)
    q, k, v = (torch.randn(2, 64, HEADS, 64).bfloat16() for _ in range(3))
    slopes, sinks = torch.ones(HEADS), torch.zeros(HEADS)
    packed = ab.BlockDiagonalMask.from_seqlens([30, 34]).with_bias(torch.zeros(1, 1, 34, 34).bfloat16())
    given = {
        "softcap": fmha.Inputs(q, k, v, softcap=20.0),
        "alibi_slopes": fmha.Inputs(q, k, v, alibi_slopes=slopes),
        "sinks": fmha.Inputs(q, k, v, sinks=sinks),
        "attn_bias": fmha.Inputs(q[:1], k[:1], v[:1], packed),
    }
    for op in (*fmha.ALL_FW_OPS, *fmha.ALL_BW_OPS):
        generic, flash = op._KEY.startswith("generic"), op._KEY.startswith("fa")
        for name, inp in given.items():
            takes_it = generic or (flash and name in ("softcap", "alibi_slopes"))
            reasons = [reason for reason in op.not_supported_reasons(inp) if reason.startswith(name)]
            assert bool(reasons) != takes_it, (op, name, reasons)
    out = memory_efficient_attention(q, k, v, op=(fmha.flash.FwOp, None), softcap=20.0, alibi_slopes=slopes)
    assert torch.equal(out, memory_efficient_attention(q, k, v, softcap=20.0, alibi_slopes=slopes))
    with pytest.raises(ValueError, match="sinks is given, expected None: this operator has none"):
        memory_efficient_attention(q, k, v, op=(fmha.cutlass.FwOp, None), sinks=sinks)
    with pytest.raises(ValueError, match="alibi_slopes.requires_grad is True"):
        trained = slopes.clone().requires_grad_()
        memory_efficient_attention(q, k, v, op=(fmha.flash.FwOp, fmha.flash.BwOp), alibi_slopes=trained)


def test_functions_by_hand():
    q, k, v = qkv(requires_grad=True)
    options = dict(softcap=1.5, alibi_slopes=torch.rand(HEADS, dtype=FP64), sinks=torch.rand(HEADS, dtype=FP64))
    out = memory_efficient_attention(q, k, v, **options)
    expected = torch.autograd.grad(out.cos().sum(), (q, k, v))
    assert torch.equal(fmha.memory_efficient_attention_forward(q, k, v, **options), out)
    again, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, **options)
    incoming = -again.sin()
    got = fmha.memory_efficient_attention_backward(incoming, again, lse, q, k, v, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


WRONG = {  # how the tensor is made, or a number, and what is said
    "negative cap": ("softcap", -1.0, r"softcap is -1.0+, expected 0 \(off\) or a finite number above it"),
    "NaN cap": ("softcap", math.nan, "softcap is nan"),
    "infinite cap": ("softcap", math.inf, "softcap is inf"),
    "two slopes": ("alibi_slopes", ((2,),), r"alibi_slopes.shape is \[2\], expected \[3\], one per head, or \[2, 3\]"),
    "one sequence": ("alibi_slopes", ((1, 3),), r"alibi_slopes.shape is \[1, 3\]"),
    "fp16 slopes": ("alibi_slopes", ((3,), torch.half), "alibi_slopes.dtype is fp16, expected fp32"),
    "meta slopes": ("alibi_slopes", ((3,), None, "meta"), "alibi_slopes.device is meta, expected (cpu|cuda)"),
    "four sinks": ("sinks", ((4,),), r"sinks.shape is \[4\]"),
    "bf16 sinks": ("sinks", ((3,), torch.bfloat16), "sinks.dtype is bf16, expected fp32, or fp32 like the query's"),
    "meta sinks": ("sinks", ((3,), None, "meta"), "sinks.device is meta, expected (cpu|cuda)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    name, given, message = WRONG[case]
    if isinstance(given, tuple):
        shape, dtype, device = (*given, None, None)[:3]
        given = torch.ones(shape, dtype=dtype, device=device)
    q, k, v = qkv(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        memory_efficient_attention(q, k, v, **{name: given})
    with pytest.raises(ValueError, match=message):
        fmha.memory_efficient_attention_forward(q, k, v, op=fmha.generic.FwOp, **{name: given})


def test_partial_attention_refuses_sinks():
    q, k, v = qkv(dtype=torch.float32)
    with pytest.raises(
        ValueError, match="sinks is a tensor .* beside partial attention, expected None.  Fix: add them"
    ):
        fmha.memory_efficient_attention_partial(q, k, v, sinks=torch.zeros(HEADS))
    out, lse = fmha.memory_efficient_attention_partial(q, k, v, softcap=2.0, alibi_slopes=torch.ones(HEADS))
    want, want_lse, _ = attention_forward(q, k, v, softcap=2.0, alibi_slopes=torch.ones(HEADS), need_lse=True)
    assert_equal((out, lse), (want, want_lse))
