"""Which operator the dispatcher takes, and what it says where none does."""

import pytest
import torch
from attention_inputs import qkv
from xformers.ops.fmha import attn_bias as ab
from xformers.ops.fmha import (
    cutlass,
    dispatch,
    flash,
    flash3,
    generic,
    triton_splitk,
)

from xformers.ops import fmha

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def inputs(nq=8, nk=8, heads=(2,), head_dim=32, dtype=BF16, bias=None, batch=1, **options):
    tensors = qkv(batch, nq, nk, heads, head_dim, dtype=dtype, requires_grad=options.pop("requires_grad", False))
    return fmha.Inputs(*tensors, bias, **options)


def test_dispatch():
    assert dispatch._dispatch_fw(inputs(), False) is flash.FwOp
    assert dispatch._dispatch_fw(inputs(dtype=F32), False) is cutlass.FwOp
    assert dispatch._dispatch_fw(inputs(dtype=F64), False) is generic.FwOp
    assert dispatch._dispatch_bw(inputs()) is flash.BwOp
    assert dispatch._dispatch_bw(inputs(dtype=F32)) is cutlass.BwOp
    assert dispatch._dispatch_bw_priority_list(inputs())[0] is flash.BwOp
    packed = inputs(bias=ab.BlockDiagonalMask.from_seqlens([4, 4]))
    assert dispatch._dispatch_bw(packed, False) is cutlass.BwOp and dispatch._dispatch_bw(packed, True) is flash.BwOp


def decoding(batch=1, nq=8, nk=2048, expanded=True):
    query = torch.zeros(batch, nq, 32, 128, dtype=BF16)
    key = torch.zeros(batch, nk, 1, 128, dtype=BF16).expand(-1, -1, 32, -1)
    return fmha.Inputs(query, *([key] * 2 if expanded else [key.contiguous()] * 2))


def test_dispatch_of_decoding():
    assert dispatch._dispatch_fw_priority_list(decoding(), False)[:2] == [flash.FwOp, triton_splitk.FwOp]
    for inp in (decoding(nq=128), decoding(batch=128), decoding(expanded=False)):
        assert dispatch._dispatch_fw_priority_list(inp, False)[0] is not triton_splitk.FwOp


def test_flash3_is_chosen_when_switched_on():
    assert fmha._get_use_fa3() is False
    fmha._set_use_fa3(True)
    try:
        assert fmha._get_use_fa3() is True
        assert dispatch._dispatch_fw(inputs(head_dim=64), False) is flash3.FwOp
        assert dispatch._dispatch_bw(inputs(head_dim=64)) is flash.BwOp
    finally:
        fmha._set_use_fa3(False)
    assert dispatch._dispatch_fw(inputs(head_dim=64), False) is flash.FwOp


def test_nothing_takes_it():
    with pytest.raises(NotImplementedError) as error:
        fmha.memory_efficient_attention(*inputs(dtype=torch.int8)._tensors())
    text = str(error.value)
    for fragment in ("memory_efficient_attention", "query [1, 8, 2, 32]", "attn_bias None", "p 0", "fa2F", "cutlassF"):
        assert fragment in text, f"{fragment!r} not in {text}"
    for fragment in ("triton_splitKF", "genericF", "query.dtype"):
        assert fragment in text, f"{fragment!r} not in {text}"


@pytest.mark.parametrize("op", [(flash.FwOp, None), (None, flash.BwOp)], ids=["forward", "backward"])
def test_named_operator_that_does_not_take_it(op):
    inp = inputs(dtype=F32, requires_grad=True)
    with pytest.raises(ValueError) as error:
        fmha.memory_efficient_attention(*inp._tensors(), op=op)
    for fragment in ("fa2", "query [1, 8, 2, 32] fp32", "query.dtype is fp32, expected fp16 or bf16"):
        assert fragment in str(error.value)


def test_ensure_op_supports():
    dispatch._ensure_op_supports_or_raise(ValueError, "name", flash.FwOp, inputs())
    with pytest.raises(TypeError, match="(?s)name: .*fp32"):
        dispatch._ensure_op_supports_or_raise(TypeError, "name", flash.FwOp, inputs(dtype=F32))
