"""The bias classes: patterns, fields, packing and splitting."""

import copy
import pickle

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha import attn_bias
from xformers.ops.fmha.attn_bias import (
    AttentionBias,
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention


def pattern(bias, nq, nk):
    """Rows of 1 (attended) and 0."""
    mask = bias.materialize((nq, nk))
    assert ((mask == 0) | (mask == -torch.inf)).all()
    return ["".join("1" if x == 0 else "0" for x in row) for row in mask]


def test_patterns():
    assert pattern(LowerTriangularMask(), 3, 4) == ["1000", "1100", "1110"]
    assert pattern(LowerTriangularMask(), 3, 2) == ["10", "11", "11"]
    assert pattern(LowerTriangularFromBottomRightMask(), 3, 4) == ["1100", "1110", "1111"]
    assert pattern(LowerTriangularFromBottomRightMask(), 3, 2) == ["00", "10", "11"]
    local = LocalAttentionFromBottomRightMask(1, 2)
    assert pattern(local, 4, 4) == ["1110", "1111", "0111", "0011"]
    assert pattern(local, 4, 5) == ["11110", "01111", "00111", "00011"]
    packed = BlockDiagonalMask.from_seqlens([2, 1], [1, 3])
    assert pattern(packed, 3, 4) == ["1000", "1000", "0111"]
    assert pattern(packed.make_causal(), 3, 4) == ["1000", "1000", "0100"]


def test_materialize_dtype_and_leading_dimensions():
    for bias in (
        LowerTriangularMask(),
        LocalAttentionFromBottomRightMask(1, 0),
        BlockDiagonalMask.from_seqlens([2, 2]),
    ):
        mask = bias.materialize((2, 3, 4, 4), dtype=torch.bfloat16)
        assert mask.shape == (2, 3, 4, 4) and mask.dtype == torch.bfloat16
        assert torch.equal(mask[1, 2], bias.materialize((4, 4), torch.bfloat16))
    with pytest.raises(NotImplementedError):
        AttentionBias().materialize((2, 2))


def test_fields():
    bias = BlockDiagonalMask.from_seqlens([2, 3, 2])
    info = bias.q_seqinfo
    assert info.seqstart_py == [0, 2, 5, 7] and info.seqstart.tolist() == [0, 2, 5, 7]
    assert info.seqstart.dtype == torch.int32 and (info.max_seqlen, info.min_seqlen) == (3, 2)
    assert list(info.intervals()) == [(0, 2), (2, 5), (5, 7)]
    assert bias.k_seqinfo is info and bias._batch_sizes is None
    assert BlockDiagonalMask.from_seqlens((2, 3), [2, 3]).k_seqinfo.seqstart_py == [0, 2, 5]
    other = BlockDiagonalMask.from_seqlens([2, 3], [4, 0])
    assert other.k_seqinfo is not other.q_seqinfo and other.k_seqinfo.min_seqlen == 0
    empty = BlockDiagonalMask.from_seqlens([])
    assert (empty.q_seqinfo.max_seqlen, empty.q_seqinfo.min_seqlen) == (-1, -1)


def test_class_relations():
    causal = BlockDiagonalMask.from_seqlens([2, 3]).make_causal()
    assert type(causal) is BlockDiagonalCausalMask and isinstance(causal, BlockDiagonalMask)
    assert type(BlockDiagonalCausalMask.from_seqlens([1])) is BlockDiagonalCausalMask
    for name in ("LowerTriangularMask", "BlockDiagonalMask", "LocalAttentionFromBottomRightMask"):
        assert issubclass(getattr(attn_bias, name), AttentionBias)
    assert AttentionBias.HOLDS_DENSE_TENSOR is False


def test_to_keeps_type_and_fields():
    bias = BlockDiagonalCausalMask.from_seqlens([2, 3])
    bias._batch_sizes = [1, 1]
    moved = bias.to("meta")
    assert type(moved) is BlockDiagonalCausalMask and moved._batch_sizes == [1, 1]
    assert moved.q_seqinfo.seqstart.device.type == "meta" and moved.k_seqinfo is moved.q_seqinfo
    assert bias.q_seqinfo.seqstart.device.type != "meta"
    for mask in (LowerTriangularMask(), LocalAttentionFromBottomRightMask(1, 1), LowerTriangularFromBottomRightMask()):
        assert mask.to("meta") is mask


def test_bias_without_a_device_follows_the_inputs():
    bias = BlockDiagonalMask.from_seqlens([2, 3])
    inputs = [x.to("meta") for x in qkv(batch=1, nk=5, requires_grad=False)]
    assert memory_efficient_attention(*inputs, bias).device.type == "meta"
    with pytest.raises(ValueError, match="cu_seqlens_q.device is cpu, expected meta"):
        memory_efficient_attention(*inputs, BlockDiagonalMask.from_seqlens([2, 3], device="cpu"))


def test_attention_follows_the_offsets_on_the_device():
    """A decoding loop rewrites them in place."""
    inputs = qkv(batch=1, nk=5, requires_grad=False)
    bias = BlockDiagonalMask.from_seqlens([2, 3])
    bias.q_seqinfo.seqstart[1] = 4
    expected = memory_efficient_attention(*inputs, BlockDiagonalMask.from_seqlens([4, 1]))
    assert torch.equal(memory_efficient_attention(*inputs, bias), expected)


def test_from_tensor_list_and_split():
    tensors = [random((2, 3, 4), seed=1), random((1, 5, 4), seed=2), random((3, 1, 4), seed=3)]
    bias, packed = BlockDiagonalMask.from_tensor_list(tensors)
    assert packed.shape == (1, 14, 4) and bias._batch_sizes == [2, 1, 3]
    assert bias.q_seqinfo.seqstart_py == [0, 3, 6, 11, 12, 13, 14]
    assert all(torch.equal(a, b) for a, b in zip(bias.split(packed), tensors, strict=False))
    parts = BlockDiagonalMask.from_seqlens([3, 3, 5]).split(packed[:, :11])
    assert [list(part.shape) for part in parts] == [[1, 3, 4], [1, 3, 4], [1, 5, 4]]


def test_from_tensor_lists_qkv():
    queries = [random((2, 3, 2, 8), seed=1), random((1, 4, 2, 8), seed=2)]
    keys = [random((2, 5, 2, 8), seed=3), random((1, 1, 2, 8), seed=4)]
    bias, q, k, v = BlockDiagonalMask.from_tensor_lists_qkv(queries, keys, keys)
    out = memory_efficient_attention(q, k, v, bias)
    for part, query, key in zip(bias.split_queries(out), queries, keys, strict=False):
        torch.testing.assert_close(part, memory_efficient_attention(query, key, key))
    assert all(torch.equal(a, b) for a, b in zip(bias.split_kv(k), keys, strict=False))
    assert BlockDiagonalMask.from_tensor_lists_qkv(queries, keys)[3] is None


def test_packed_equals_one_by_one():
    lengths = [4, 0, 9, 1]
    query, key, value = qkv(batch=1, nq=14, nk=14, requires_grad=False)
    bias = BlockDiagonalCausalMask.from_seqlens(lengths)
    parts = zip(*(bias.split(x) for x in (query, key, value)), strict=False)
    expected = torch.cat([memory_efficient_attention(*part, LowerTriangularMask()) for part in parts], 1)
    torch.testing.assert_close(memory_efficient_attention(query, key, value, bias), expected)


@pytest.mark.parametrize("bias", [LowerTriangularMask(), LocalAttentionFromBottomRightMask(1, 1)], ids=repr)
def test_pickle_and_copy(bias):
    for clone in (pickle.loads(pickle.dumps(bias)), copy.deepcopy(bias)):
        assert type(clone) is type(bias) and pattern(clone, 3, 4) == pattern(bias, 3, 4)


def test_boolean_mask_means_attend():
    query, key, value = qkv()
    attend = random((2, 3, 5, 7), seed=5) > 0
    attend[0, 0, 2] = False
    added = torch.zeros(attend.shape).masked_fill(~attend, -torch.inf)
    out = memory_efficient_attention(query, key, value, attend)
    assert torch.equal(out, memory_efficient_attention(query, key, value, added))
    assert (out[0, 2, 0] == 0).all()
