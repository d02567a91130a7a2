"""The operator classes: their contracts, their reasons, and which of them the dispatcher takes."""

import pytest
import torch
from attention_inputs import qkv
from attn_bias_cases import OPERATORS
from xformers.ops.fmha import attn_bias as ab
from xformers.ops.fmha import (
    ck,
    ck_decoder,
    ck_splitk,
    cutlass,
    dispatch,
    flash,
    flash3,
    generic,
    triton_splitk,
)

from xformers.ops import fmha
from xformers.ops.common import FUNC_TO_XFORMERS_OPERATOR, OPERATORS_REGISTRY, BaseOperator, get_operator

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
NAMED = [cutlass.FwOp, cutlass.BwOp, flash.FwOp, flash.BwOp, flash3.FwOp, flash3.BwOp, triton_splitk.FwOp]
ALL = [*NAMED, generic.FwOp, generic.BwOp, ck.FwOp, ck.BwOp, ck_decoder.FwOp, ck_splitk.FwOp]
EACH = pytest.mark.parametrize("op", ALL, ids=lambda op: op.NAME)


def inputs(nq=8, nk=8, heads=(2,), head_dim=32, dtype=BF16, bias=None, batch=1, **options):
    tensors = qkv(batch, nq, nk, heads, head_dim, dtype=dtype, requires_grad=options.pop("requires_grad", False))
    return fmha.Inputs(*tensors, bias, **options)


# NAME, dtypes, largest head_dim, own value head_dim, dropout, output dtype, partial, 5-D, deterministic, bias gradient,
# packed lse, capability
CONTRACTS = {
    cutlass.FwOp: ("cutlassF", {F32, F16, BF16}, 65536, True, True, False, True, True, True, False, False, (5, 0)),
    cutlass.BwOp: ("cutlassB", {F32, F16, BF16}, 65536, True, True, False, True, False, True, True, False, (5, 0)),
    flash.FwOp: ("fa2F@2.6.3", {F16, BF16}, 256, False, True, False, True, True, True, False, True, (8, 0)),
    flash.BwOp: ("fa2B@2.6.3", {F16, BF16}, 256, False, True, False, True, False, False, False, True, (8, 0)),
    flash3.FwOp: (None, {F16, BF16}, 256, False, False, False, True, True, True, False, True, (9, 0)),
    flash3.BwOp: (None, {F16, BF16}, 128, False, False, False, True, False, False, False, True, (9, 0)),
    triton_splitk.FwOp: ("triton_splitKF", {F16, BF16}, 512, False, False, True, True, True, True, False, True, (8, 0)),
}


@pytest.mark.parametrize("op", CONTRACTS, ids=lambda op: op.NAME)
def test_contract(op):
    (
        name,
        dtypes,
        max_k,
        own_value,
        dropout,
        output_dtype,
        partial,
        groups,
        deterministic,
        bias_grad,
        packed,
        capability,
    ) = CONTRACTS[op]
    assert (
        name in (None, op.NAME)
        and op.NAME.split("@")[0] in ("cutlassF", "cutlassB", "triton_splitKF")
        or "@" in op.NAME
    )
    assert op.SUPPORTED_DTYPES == dtypes and op.SUPPORTED_MAX_K == max_k and op.SUPPORTED_MIN_K == 0
    assert op.SUPPORTS_DIFFERENT_VALUE_EMBED is own_value and op.SUPPORTS_DROPOUT is dropout
    assert op.SUPPORTS_OUTPUT_DTYPE is output_dtype and op.SUPPORTS_PARTIAL is partial
    assert op.SUPPORTS_BMGHK is groups and op.IS_DETERMINISTIC is deterministic
    assert op.SUPPORTS_ATTN_BIAS_GRAD is bias_grad and op.VARLEN_LSE_PACKED is packed
    assert op.CUDA_MINIMUM_COMPUTE_CAPABILITY == capability and op.SUPPORTS_CUSTOM_SCALE is True
    assert op.SUPPORTED_DEVICES == {"cuda", "cpu"}


# F forward, B forward and backward
SUPPORTED = {
    type(None): "BBBF",
    torch.Tensor: "B--F",
    **{getattr(ab, name): operators for name, operators in OPERATORS.items()},
}


@pytest.mark.parametrize("bias", SUPPORTED, ids=lambda cls: cls.__name__)
def test_supported_biases(bias):
    for module, support in zip((cutlass, flash, flash3, triton_splitk), SUPPORTED[bias], strict=True):
        assert (bias in module.FwOp.SUPPORTED_ATTN_BIAS_TYPES) == (support in "FB"), module
        if hasattr(module, "BwOp"):
            assert (bias in module.BwOp.SUPPORTED_ATTN_BIAS_TYPES) == (support == "B"), module
    assert bias in generic.FwOp.SUPPORTED_ATTN_BIAS_TYPES and bias in generic.BwOp.SUPPORTED_ATTN_BIAS_TYPES


def test_tolerances():
    assert cutlass.FwOp.ERROR_ATOL == {F32: 3e-4, F16: 4e-3, BF16: 2e-2}
    assert cutlass.FwOp.ERROR_RTOL == {F32: 2e-5, F16: 4e-4, BF16: 5e-3}
    assert flash.BwOp.ERROR_ATOL == {F32: 9e-4, F16: 0.2, BF16: 0.9}
    assert flash.BwOp.ERROR_RTOL == {F32: 1e-4, F16: 2e-2, BF16: 0.1}


@EACH
def test_registered(op):
    assert op in OPERATORS_REGISTRY and issubclass(op, BaseOperator)
    assert op.OPERATOR_CATEGORY == "memory_efficient_attention"
    assert FUNC_TO_XFORMERS_OPERATOR[op.OPERATOR].OPERATOR == op.OPERATOR
    assert op.is_available() == (not op.NAME.startswith("ck"))
    assert len({other.NAME for other in ALL}) == len(ALL)


def test_lists_of_operators():
    assert fmha.ALL_FW_OPS[:4] == [cutlass.FwOp, flash.FwOp, flash3.FwOp, triton_splitk.FwOp]
    assert fmha.ALL_BW_OPS[:3] == [cutlass.BwOp, flash.BwOp, flash3.BwOp]
    assert fmha.ALL_FW_OPS[-1] is generic.FwOp and fmha.ALL_BW_OPS[-1] is generic.BwOp


def test_versions():
    assert flash.FLASH_VERSION == flash.FwOp.VERSION == "2.6.3" and flash.FwOp.VERSION in flash.FwOp.NAME
    assert flash3.FwOp.VERSION and flash3.FwOp.VERSION in flash3.FwOp.NAME
    assert flash.BwOp.MAX_HEADDIM_DROPOUT_SM8x == 224


def test_an_operator_that_is_missing():
    missing = get_operator("xformers", "no_name_like_this")
    assert missing.__name__ == "no_such_operator"
    with pytest.raises(RuntimeError, match="xformers::no_name_like_this"):
        missing(1)


REASONS = {
    "dtype": (flash.FwOp, inputs(dtype=F32), "query.dtype is fp32, expected fp16 or bf16"),
    "head_dim": (flash.FwOp, inputs(head_dim=264), "264"),
    "alignment": (flash.FwOp, inputs(head_dim=20), "multiple of 8"),
    "bias": (flash.FwOp, inputs(bias=torch.zeros(1, 2, 8, 8, dtype=BF16)), "attn_bias"),
    "lengths": (flash.FwOp, inputs(nk=16, bias=ab.LowerTriangularMask()), "LowerTriangularMask"),
    "dropout": (triton_splitk.FwOp, inputs(p=0.5), "p is 0.5"),
    "output dtype": (cutlass.FwOp, inputs(output_dtype=F32), "output_dtype"),
    "groups": (cutlass.BwOp, inputs(heads=(2, 2)), "BMGHK"),
    "not built": (ck.FwOp, inputs(), "python -m xformers.info"),
    "many queries": (
        triton_splitk.FwOp,
        inputs(
            nq=17, nk=32, bias=ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([17], 32, [30]), head_dim=16
        ),
        None,  # better: no limit here
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name):
    op, inp, fragment = REASONS[name]
    reasons = op.not_supported_reasons(inp)
    assert op.supports(inp) == (not reasons) == (fragment is None)
    assert fragment is None or any(fragment in reason for reason in reasons), reasons


def test_all_reasons_are_given():
    inp = inputs(dtype=F32, head_dim=300, p=0.5, bias=torch.zeros(1, 2, 8, 8), output_dtype=BF16)
    reasons = triton_splitk.FwOp.not_supported_reasons(inp)
    assert len(reasons) >= 4, reasons


def test_shape_reasons():
    assert flash.FwOp.shape_not_supported_reasons(8, 8, 64, 64) == []
    assert len(flash.FwOp.shape_not_supported_reasons(8, 8, 512, 64)) >= 2
    assert cutlass.FwOp.shape_not_supported_reasons(8, 8, 512, 64) == []


def test_exact_type_of_the_bias():
    class Mine(ab.BlockDiagonalCausalMask):
        pass

    Namesake = type("BlockDiagonalCausalMask", (ab.BlockDiagonalCausalMask,), {})
    for cls in (Mine, Namesake):
        inp = inputs(bias=cls.from_seqlens([4, 4]))
        assert not flash.FwOp.supports(inp) and not cutlass.FwOp.supports(inp) and generic.FwOp.supports(inp)
        expected = fmha.memory_efficient_attention(*inp._tensors(), ab.BlockDiagonalCausalMask.from_seqlens([4, 4]))
        assert torch.equal(fmha.memory_efficient_attention(*inp._tensors(), inp.attn_bias), expected)


def test_bias_that_requires_grad():
    bias = torch.zeros(1, 2, 8, 8, requires_grad=True)
    inp = inputs(dtype=F32, bias=bias)
    assert cutlass.BwOp.supports(inp) and generic.BwOp.supports(inp)
    causal = inputs(dtype=F32, bias=ab.LowerTriangularMask().add_bias(bias))
    assert cutlass.BwOp.supports(causal) and not flash.BwOp.supports(causal)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_determinism():
    inp = inputs(requires_grad=True)
    assert flash.FwOp.supports(inp) and cutlass.BwOp.supports(inp)
    assert any("deterministic" in reason for reason in flash.BwOp.not_supported_reasons(inp))
    packed = inputs(requires_grad=True, bias=ab.BlockDiagonalMask.from_seqlens([4, 4]))
    fw = dispatch._dispatch_fw(packed, needs_gradient=True)
    assert dispatch._dispatch_bw(packed, pair_with=fw) in (cutlass.BwOp, generic.BwOp)  # of the same format
    q, k, v = packed._tensors()
    grads = [
        torch.autograd.grad(fmha.memory_efficient_attention(q, k, v, packed.attn_bias).sum(), (q, k, v))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@EACH
def test_apply(op):
    inp = inputs(requires_grad=True)
    if not op.is_available():
        with pytest.raises(NotImplementedError, match="not built"):
            op.apply(inp, False) if issubclass(op, fmha.AttentionFwOpBase) else op.apply(None, inp, inp.query)
        return
    if issubclass(op, fmha.AttentionFwOpBase):
        out, context = op.apply(inp, needs_gradient=False)
        assert context is None and not out.requires_grad
        again, context = op.apply(inp, needs_gradient=True)
        assert torch.equal(out, again) and context.out is again and context.op_bw is None
        assert context.lse.shape == (1, 2, 32 if op is cutlass.FwOp else 8) and not context.lse.requires_grad
    else:
        out, context = generic.FwOp.apply(inp, needs_gradient=True)
        grads = op.apply(context, inp, torch.ones_like(out))
        expected = torch.autograd.grad(fmha.memory_efficient_attention(*inp._tensors()).sum(), inp._tensors())
        assert all(torch.equal(a, b) for a, b in zip((grads.dq, grads.dk, grads.dv), expected, strict=True))
        assert grads.db is None


def test_apply_with_dropout_keeps_its_backward():
    inp = inputs(requires_grad=True, p=0.4)
    for module in (cutlass, flash, generic):
        out, context = module.FwOp.apply(inp, needs_gradient=True)
        assert context.op_bw is module.BwOp and context.rng_state.shape == (2,)
        first, second = (fmha._memory_efficient_attention_backward(context, inp, out, None) for _ in "12")
        assert torch.equal(first.dq, second.dq)
        with pytest.raises(ValueError, match="rng_state is None beside p = 0.4"):
            module.BwOp.apply(fmha.Context(lse=context.lse, out=out), inp, out)
    assert cutlass.FwOp.apply_bmhk(inp, needs_gradient=True)[1].lse.shape == (1, 2, 32)
