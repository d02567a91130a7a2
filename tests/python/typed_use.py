"""Calls as users write them, with the types that a checker must find: mypy reads this file in `make lint`."""

import torch
from torch import Tensor
from typing_extensions import assert_type

import xformers.ops as xops
from xformers import components, operators, triton
from xformers.ops import fmha

q = torch.empty(1, 4, 2, 8)
assert_type(xops.memory_efficient_attention(q, q, q, p=0.1, op=fmha.MemoryEfficientAttentionFlashAttentionOp), Tensor)
assert_type(xops.memory_efficient_attention_forward_requires_grad(q, q, q), tuple[Tensor, Tensor])
assert_type(xops.memory_efficient_attention_backward(q, q, q, q, q, q), tuple[Tensor, Tensor, Tensor])
assert_type(fmha.memory_efficient_attention_partial(q, q, q, op=fmha.triton_splitk.FwOp), tuple[Tensor, Tensor])
assert_type(fmha.merge_attentions([q], [q]), tuple[Tensor, Tensor | None])
assert_type(fmha.triton_splitk.FwOp.get_operator(3), type[fmha.triton_splitk.FwOp])
assert_type(fmha.flash.FwOp.not_supported_reasons(fmha.Inputs(q, q, q)), list[str])
assert_type(fmha.flash.FwOp.apply(fmha.Inputs(q, q, q), needs_gradient=True), tuple[Tensor, fmha.Context | None])

causal = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens([1, 3])
assert_type(causal, fmha.attn_bias.BlockDiagonalCausalMask)
assert_type(causal.to("cpu"), fmha.attn_bias.BlockDiagonalCausalMask)
assert_type(causal.split(q), list[Tensor])
assert_type(causal.lower(q.device), fmha.attn_bias.LoweredBias)
assert_type(xops.memory_efficient_attention(q, q, q, xops.LowerTriangularMask().add_bias(q)), Tensor)

assert_type(xops.rms_norm(q, None), Tensor)
assert_type(xops.unbind(q, 0), tuple[Tensor, ...])
assert_type(xops.stack_or_none([q, q], 0), Tensor | None)
assert_type(xops.tiled_matmul([[q]], [[q]]), list[list[Tensor]])
assert_type(xops.swiglu(q, q, None, q, None, q, None, op=xops.SwiGLUFusedOp), Tensor)
assert_type(xops.index_select_cat([q], [q]), Tensor)
assert_type(triton.softmax(q, causal=True), Tensor)
assert_type(triton.dropout(q, 0.1, activation=components.Activation.GeLU), Tensor)
assert_type(components.build_activation("gelu"), torch.nn.Module)
assert_type(components.RotaryEmbedding(8).inv_freq, Tensor)

assert_type(operators.rotary(q, theta=5e5), Tensor)
assert_type(operators.attention_forward(q, q, q, need_lse=True), tuple[Tensor, Tensor, Tensor])
assert_type(operators.unbind(q), list[Tensor])
operators.rms_norm_add_(q, q, weight="none")  # type: ignore[arg-type]

packed = fmha.BlockDiagonalMask.from_seqlens([3, 1])
assert_type(packed, fmha.BlockDiagonalMask)
assert_type(packed.make_causal(), fmha.BlockDiagonalCausalMask)
assert_type(packed.split(q), list[Tensor])
assert_type(fmha.BlockDiagonalCausalMask.from_seqlens([3]), fmha.BlockDiagonalCausalMask)
assert_type(fmha.BlockDiagonalCausalMask.from_tensor_list([q]), tuple[fmha.BlockDiagonalCausalMask, Tensor])
assert_type(packed.to("cpu"), fmha.BlockDiagonalMask)
padded = fmha.BlockDiagonalPaddedKeysMask.from_seqlens([1], 8, [4])
assert_type(padded, fmha.BlockDiagonalPaddedKeysMask)
table = torch.zeros(1, 1, dtype=torch.int32)
paged = padded.make_paged(table, 8, fmha.PagedBlockDiagonalPaddedKeysMask)
assert_type(paged, fmha.PagedBlockDiagonalPaddedKeysMask)
assert_type(packed.materialize((4, 4)), Tensor)
assert_type(fmha.LowerTriangularMask().add_bias(q), fmha.LowerTriangularMaskWithTensorBias)
