"""What upstream gets wrong and docs/better.md promises, where no other file tests it."""

import copy
import dataclasses

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

TABLE = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
BIASES = [
    ab.LowerTriangularMask(),
    ab.LowerTriangularMaskWithTensorBias(torch.zeros(1, 1, 3, 3)),
    ab.LowerTriangularFromBottomRightMask(),
    ab.LowerTriangularFromBottomRightLocalAttentionMask(2),
    ab.LocalAttentionFromBottomRightMask(1, 2),
    ab.BlockDiagonalMask.from_seqlens([2, 3]),
    ab.BlockDiagonalCausalMask.from_seqlens([2, 3]),
    ab.BlockDiagonalCausalFromBottomRightMask.from_seqlens([2, 3], [4, 3]),
    ab.BlockDiagonalMask.from_seqlens([2, 3]).make_local_attention(2),
    ab.BlockDiagonalMask.from_seqlens([2, 3]).make_local_attention_from_bottomright(2),
    ab.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 8, [5, 6]),
    ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 8, [5, 6]),
    ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([2, 3], 8, [5, 6], 2),
    ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([2, 3], [5, 6], TABLE, 4),
    ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], [5, 6], TABLE, 4),
    ab.BlockDiagonalGappyKeysMask.from_seqlens([2, 3], [1, 3, 16], [5, 6]),
    ab.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens([2, 3], [1, 3, 16], [5, 6]),
    ab.PagedBlockDiagonalGappyKeysMask.from_seqlens([2, 3], [1, 2], [5, 6], TABLE, 4),
]


class UsersOwnMask(ab.BlockDiagonalCausalMask):
    pass


@pytest.mark.parametrize("bias", [*BIASES, UsersOwnMask.from_seqlens([2, 3])], ids=lambda bias: type(bias).__name__)
def test_to_keeps_the_class(bias):
    """`.to()` and copies keep class, band, window and lengths."""
    there = bias.to("meta")
    assert type(there) is type(bias)
    shape = (1, 1, 3, 3) if not hasattr(bias, "q_seqinfo") else (5, _keys(bias))
    for again in (bias.to("cpu"), copy.deepcopy(bias)):
        assert type(again) is type(bias)
        assert torch.equal(again.materialize(shape), bias.materialize(shape))
    if dataclasses.is_dataclass(bias) and hasattr(bias, "_window_size"):
        assert there._window_size == bias._window_size


def _keys(bias):
    return bias.block_tables.numel() * bias.page_size if hasattr(bias, "page_size") else bias.k_seqinfo.seqstart_py[-1]


def test_when_gradients_are_recorded():
    """A bias that alone requires a gradient counts, and no_grad is heeded."""
    query, key, value = qkv(requires_grad=False)
    bias = random((2, 3, 5, 7), seed=3, requires_grad=True)
    (grad,) = torch.autograd.grad(memory_efficient_attention(query, key, value, bias).sum(), bias)
    assert (grad != 0).any()
    with torch.no_grad():
        assert not memory_efficient_attention(*qkv(), bias).requires_grad


@pytest.mark.parametrize("op", [None, "triton_splitk"])
@pytest.mark.parametrize("output_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_dtype(op, output_dtype):
    inputs = qkv(head_dim=32, dtype=torch.float16, requires_grad=False)
    options = {"op": getattr(fmha, op).FwOp} if op else {}
    out = fmha.memory_efficient_attention_forward(*inputs, output_dtype=output_dtype, **options)
    assert out.dtype == output_dtype
    expected = fmha.memory_efficient_attention_forward(*(x.double() for x in inputs))
    torch.testing.assert_close(out.double(), expected, atol=1e-2, rtol=1e-2)


def test_output_dtype_with_gradients():
    """It is not dropped where gradients are recorded, and these come in the dtype of the inputs."""
    inputs = qkv(dtype=torch.bfloat16)
    out = memory_efficient_attention(*inputs, output_dtype=torch.float32)
    assert out.dtype == torch.float32
    grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert all(grad.dtype == torch.bfloat16 for grad in grads)
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, output_dtype=torch.float32), *inputs)


def test_packed_lengths_as_list_or_tuple():
    """Equal lengths are equal, whatever holds them: `split` works."""
    bias = ab.BlockDiagonalMask.from_seqlens([2, 3], (2, 3))
    assert [part.shape[1] for part in bias.split(torch.zeros(1, 5, 4))] == [2, 3]
