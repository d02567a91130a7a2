"""Operators asked for what they do not take, and pairs that do not fit: the exception and its text."""

import pytest
import torch
from attention_inputs import qkv
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention, memory_efficient_attention_forward

HALF = dict(head_dim=32, dtype=torch.float16)
CUTLASS, FLASH, FLASH3, SPLIT_K = fmha.cutlass, fmha.flash, fmha.flash3, fmha.triton_splitk

# name -> (operator, inputs, keyword arguments, facts of the message)
REFUSED = {
    "flash fp32": (FLASH.FwOp, dict(head_dim=32), {}, ["dtype"]),
    "flash head_dim": (FLASH.FwOp, dict(head_dim=264, dtype=torch.float16), {}, ["264", "256"]),
    "flash head_dim_v": (FLASH.FwOp, dict(head_dim=32, head_dim_v=16, dtype=torch.float16), {}, ["32", "16"]),
    "flash tensor bias": (FLASH.FwOp, HALF, dict(attn_bias=torch.zeros(2, 3, 5, 7).half()), ["Tensor"]),
    "flash causal, other lengths": (
        FLASH.FwOp,
        HALF,
        dict(attn_bias=ab.LowerTriangularMask()),
        ["LowerTriangularMask"],
    ),
    "flash output dtype": (FLASH.FwOp, HALF, dict(output_dtype=torch.float32), ["dtype"]),
    "flash alignment": (FLASH.FwOp, dict(head_dim=33, dtype=torch.float16), {}, ["8"]),
    "flash3 head_dim": (FLASH3.FwOp, HALF, {}, ["32"]),
    "flash3 dropout": (FLASH3.FwOp, dict(head_dim=64, dtype=torch.float16), dict(p=0.1), ["dropout"]),
    "split-K dropout": (SPLIT_K.FwOp, HALF, dict(p=0.1), ["dropout"]),
    "split-K fp32": (SPLIT_K.FwOp, dict(head_dim=32), {}, ["dtype"]),
    "split-K causal": (SPLIT_K.FwOp, HALF, dict(attn_bias=ab.LowerTriangularMask()), ["LowerTriangularMask"]),
    "cutlass fp64": (CUTLASS.FwOp, dict(head_dim=32, dtype=torch.float64), {}, ["dtype"]),
    "cutlass output dtype": (CUTLASS.FwOp, HALF, dict(output_dtype=torch.float32), ["dtype"]),
    "cutlass local": (
        CUTLASS.FwOp,
        HALF,
        dict(attn_bias=ab.LocalAttentionFromBottomRightMask(1, 1)),
        ["LocalAttentionFromBottomRightMask"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operator_that_does_not_take_it(name):
    """ValueError with the operator's name, the inputs and every reason; the default operator takes it or says so."""
    op, sizes, options, facts = REFUSED[name]
    inputs = qkv(**sizes, requires_grad=False)
    with pytest.raises(ValueError) as error:
        memory_efficient_attention_forward(*inputs, op=op, **options)
    text = str(error.value)
    for fact in (op.NAME, "query", *facts):
        assert fact.lower() in text.lower(), f"{fact!r} not in: {text}"
    inp = fmha.Inputs(*inputs, **options)
    reasons = op.not_supported_reasons(inp)
    assert reasons and not op.supports(inp) and all(reason in text for reason in reasons)
    out = memory_efficient_attention_forward(*inputs, **options)
    assert out.shape == (*inputs[0].shape[:-1], inputs[2].shape[-1])


def test_all_reasons_at_once():
    query, key, value = qkv(head_dim=33, head_dim_v=600, requires_grad=False)
    inp = fmha.Inputs(query, key, value, torch.zeros(2, 3, 5, 7), p=0.5, output_dtype=torch.float64)
    assert len(FLASH.FwOp.not_supported_reasons(inp)) >= 5


def test_operators_that_are_not_built():
    inputs = qkv(**HALF, requires_grad=False)
    for op in (fmha.ck.FwOp, fmha.ck_decoder.FwOp, fmha.ck_splitk.FwOp):
        assert not op.is_available()
        with pytest.raises(ValueError, match=op.NAME):
            memory_efficient_attention_forward(*inputs, op=op)


def test_explicit_backward_that_does_not_fit():
    """Checked when the forward is called, not in its backward."""
    inputs = qkv(head_dim=32)
    with pytest.raises(ValueError, match=FLASH.BwOp.NAME):
        memory_efficient_attention(*inputs, op=(CUTLASS.FwOp, FLASH.BwOp))


def test_bias_gradient_that_an_operator_cannot_give():
    inputs = qkv(**HALF)
    bias = torch.zeros(2, 3, 5, 7, dtype=torch.float16, requires_grad=True)
    with pytest.raises(ValueError, match=FLASH.BwOp.NAME):
        memory_efficient_attention(*inputs, bias, op=(CUTLASS.FwOp, FLASH.BwOp))


@pytest.mark.parametrize("op", ["flash", (fmha.flash.FwOp,), (fmha.flash.BwOp, fmha.flash.FwOp), 3], ids=str)
def test_op_of_the_wrong_kind_meets_any_refusal(op):
    inputs = qkv(**HALF)
    with pytest.raises((ValueError, TypeError)):
        memory_efficient_attention(*inputs, op=op)


def test_what_no_operator_takes():
    """NotImplementedError: the inputs, then each operator with all its reasons."""
    query, key, value = (torch.zeros(1, 4, 2, 16, dtype=torch.int8) for _ in range(3))
    with pytest.raises(NotImplementedError) as error:
        memory_efficient_attention(query, key, value)
    text = str(error.value)
    for fact in ("[1, 4, 2, 16]", CUTLASS.FwOp.NAME, FLASH.FwOp.NAME, SPLIT_K.FwOp.NAME, fmha.generic.FwOp.NAME):
        assert fact in text, f"{fact!r} not in: {text}"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64], ids=str)
def test_dtype_that_no_operator_takes(dtype):
    inputs = [x.to(dtype) for x in qkv(**HALF, requires_grad=False)]
    with pytest.raises(NotImplementedError, match="dtype"):
        memory_efficient_attention(*inputs)
    with pytest.raises(ValueError, match="dtype"):
        memory_efficient_attention_forward(*inputs, op=CUTLASS.FwOp)


def lse_of(forward, bias, inputs):
    return fmha.memory_efficient_attention_forward_requires_grad(*inputs, bias, op=forward)


@pytest.mark.parametrize("forward, backward", [(CUTLASS.FwOp, FLASH.BwOp), (FLASH.FwOp, CUTLASS.BwOp)])
def test_lse_of_another_format(forward, backward):
    bias = ab.BlockDiagonalMask.from_seqlens([2, 3])
    inputs = [x[:1, :5] for x in qkv(**HALF, requires_grad=False)]
    out, lse = lse_of(forward, bias, inputs)
    with pytest.raises(ValueError, match=backward.NAME):
        fmha.memory_efficient_attention_backward(out, out, lse, *inputs, bias, op=backward)
    with pytest.raises(ValueError, match=forward.NAME):
        memory_efficient_attention(*(x.clone().requires_grad_() for x in inputs), bias, op=(forward, backward))


@pytest.mark.parametrize(
    "change",
    [
        lambda lse: lse[0],
        lambda lse: lse[None],
        lambda lse: lse[:, :2],
        lambda lse: lse[..., :4],
        lambda lse: lse[:1],
        lambda lse: lse.to("meta"),
    ],
)
def test_lse_of_the_wrong_shape(change):
    inputs = qkv(**HALF, requires_grad=False)
    out, lse = lse_of(None, None, inputs)
    for op in (None, CUTLASS.BwOp, FLASH.BwOp):
        with pytest.raises(ValueError, match="lse"):
            fmha.memory_efficient_attention_backward(out, out, change(lse), *inputs, op=op)


def test_gradients_of_quantised_keys_meet_any_refusal():
    query = qkv(nq=2, batch=1, heads=(2,), head_dim=64, dtype=torch.float16)[0]
    words = torch.zeros(1, 9, 2, 1 + 64 // 8, dtype=torch.int32)
    assert fmha.memory_efficient_attention_forward(query, words, words).shape == query.shape
    with pytest.raises((ValueError, NotImplementedError)):
        memory_efficient_attention(query, words, words).sum().backward()


@pytest.mark.parametrize("width", [0, 1, 7, 8, 11, 13, 17])
def test_quantised_keys_of_another_width_meet_any_refusal(width):
    """64 elements take 8 words and 1, 2, 4 or 8 coefficients."""
    query = qkv(nq=2, batch=1, heads=(2,), head_dim=64, dtype=torch.float16, requires_grad=False)[0]
    words = torch.zeros(1, 9, 2, width, dtype=torch.int32)
    for op in (None, SPLIT_K.FwOp):
        with pytest.raises((ValueError, NotImplementedError)):
            fmha.memory_efficient_attention_forward(query, words, words, op=op)


def test_fp8_needs_its_coefficients():
    query = qkv(nq=2, batch=1, heads=(2,), head_dim=64, dtype=torch.float16, requires_grad=False)[0]
    words, coefficients = torch.zeros(1, 9, 2, 16, dtype=torch.int32), torch.zeros(1, 9, 2, dtype=torch.int32)
    cls = SPLIT_K.InputsFp8
    for both in (dict(k_fp8_scale_shift=coefficients), dict(v_fp8_scale_shift=coefficients)):
        with pytest.raises(ValueError):
            fmha._memory_efficient_attention_forward(cls(query, words, words, **both), op=SPLIT_K.FwOp)
    wrong = dict(k_fp8_scale_shift=coefficients[0], v_fp8_scale_shift=coefficients[0])
    with pytest.raises(ValueError):
        fmha._memory_efficient_attention_forward(cls(query, words, words, **wrong), op=SPLIT_K.FwOp)
