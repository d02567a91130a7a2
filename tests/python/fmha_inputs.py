"""Inputs and names that the tests of named operators share."""

import torch
from attention_inputs import qkv
from xformers.ops.fmha import attn_bias as ab
from xformers.ops.fmha import cutlass, flash, flash3, generic, triton_splitk

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
FORWARDS = [cutlass.FwOp, flash.FwOp, flash3.FwOp, triton_splitk.FwOp, generic.FwOp]
BACKWARDS = [cutlass.BwOp, flash.BwOp, flash3.BwOp, generic.BwOp]
PACKED = ab.BlockDiagonalMask.from_seqlens([33, 0, 7], [33, 5, 7])


def name(op):
    return op.NAME if isinstance(op, type) else str(op)


def half(nq=40, nk=40, heads=(2,), head_dim=64, batch=1, **options):
    return qkv(batch, nq, nk, heads, head_dim, dtype=options.pop("dtype", BF16), **options)
