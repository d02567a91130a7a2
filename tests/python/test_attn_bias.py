"""Using biases: packing and splitting, devices, and lengths that change between calls."""

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalMask,
    BlockDiagonalPaddedKeysMask,
    LowerTriangularMask,
    PagedBlockDiagonalPaddedKeysMask,
)

from xformers.ops import memory_efficient_attention

TABLES = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)


def test_equal_lengths_share_their_offsets():
    bias = BlockDiagonalMask.from_seqlens([2, 3, 2])
    assert bias.k_seqinfo is bias.q_seqinfo and bias._batch_sizes is None
    assert BlockDiagonalMask.from_seqlens((2, 3), [2, 3]).k_seqinfo.seqstart_py == [0, 2, 5]
    other = BlockDiagonalMask.from_seqlens([2, 3], [4, 0])
    assert other.k_seqinfo is not other.q_seqinfo and other.k_seqinfo.min_seqlen == 0
    # a list beside a tuple is no difference
    assert len(BlockDiagonalMask.from_seqlens((2, 3), [2, 3]).split(torch.zeros(1, 5, 1))) == 2


def test_from_tensor_list_and_split():
    tensors = [random((2, 3, 4), seed=1), random((1, 5, 4), seed=2), random((3, 1, 4), seed=3)]
    bias, packed = BlockDiagonalMask.from_tensor_list(tensors)
    assert packed.shape == (1, 14, 4) and bias._batch_sizes == [2, 1, 3]
    assert bias.q_seqinfo.seqstart_py == [0, 3, 6, 11, 12, 13, 14]
    assert all(torch.equal(a, b) for a, b in zip(bias.split(packed), tensors, strict=True))
    assert type(BlockDiagonalCausalMask.from_tensor_list(tensors)[0]) is BlockDiagonalCausalMask


def test_from_tensor_lists_qkv():
    queries = [random((2, 3, 2, 8), seed=1), random((1, 4, 2, 8), seed=2)]
    keys = [random((2, 5, 2, 8), seed=3), random((1, 1, 2, 8), seed=4)]
    bias, q, k, v = BlockDiagonalMask.from_tensor_lists_qkv(queries, keys, keys)
    out = memory_efficient_attention(q, k, v, bias)
    for part, query, key in zip(bias.split_queries(out), queries, keys, strict=True):
        torch.testing.assert_close(part, memory_efficient_attention(query, key, key))
    assert all(torch.equal(a, b) for a, b in zip(bias.split_kv(k), keys, strict=True))
    assert BlockDiagonalMask.from_tensor_lists_qkv(queries, keys)[3] is None


def test_packed_equals_one_by_one():
    lengths = [4, 0, 9, 1]
    query, key, value = qkv(batch=1, nq=14, nk=14, requires_grad=False)
    bias = BlockDiagonalCausalMask.from_seqlens(lengths)
    parts = zip(*(bias.split(x) for x in (query, key, value)), strict=True)
    expected = torch.cat([memory_efficient_attention(*part, LowerTriangularMask()) for part in parts], 1)
    torch.testing.assert_close(memory_efficient_attention(query, key, value, bias), expected)


BUILD = {
    "packed": lambda device=None: BlockDiagonalMask.from_seqlens([2, 3], [3, 4], device=device),
    "padded": lambda device=None: BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 4, [2, 3], device=device),
    "gappy": lambda device=None: BlockDiagonalGappyKeysMask.from_seqlens([2, 3], [0, 3, 8], [2, 3], device=device),
}


@pytest.mark.parametrize("name", BUILD)
def test_without_a_device_a_bias_follows_the_inputs(name):
    keys = 7 if name == "packed" else 8
    inputs = [x.to("meta") for x in qkv(batch=1, nk=keys, requires_grad=False)]
    assert memory_efficient_attention(*inputs, BUILD[name]()).device.type == "meta"
    with pytest.raises(ValueError, match="cu_seqlens_q.device is cpu, expected meta"):
        memory_efficient_attention(*inputs, BUILD[name]("cpu"))
    with pytest.raises(ValueError, match="cu_seqlens_q.device is meta, expected cpu"):
        memory_efficient_attention(*qkv(batch=1, nk=keys), BUILD[name]().to("meta"))


def test_a_page_table_stays_where_it_is():
    inputs = [x.to("meta") for x in qkv(batch=1, nk=8, requires_grad=False)]
    with pytest.raises(ValueError, match="page_table.device is cpu, expected meta"):
        memory_efficient_attention(*inputs, PagedBlockDiagonalPaddedKeysMask.from_seqlens([2, 3], [2, 3], TABLES, 2))


def test_attention_follows_the_offsets_on_the_device():
    inputs = qkv(batch=1, nk=5, requires_grad=False)
    bias = BlockDiagonalMask.from_seqlens([2, 3])
    bias.q_seqinfo.seqstart[1] = 4
    expected = memory_efficient_attention(*inputs, BlockDiagonalMask.from_seqlens([4, 1]))
    assert torch.equal(memory_efficient_attention(*inputs, bias), expected)


@pytest.mark.parametrize("paged", [False, True])
def test_a_decoding_loop_grows_the_lengths_in_place(paged):
    """Only the device tensor of the key lengths changes; all host fields stay as they were."""
    query, key, value = qkv(batch=1, nq=2, nk=16, requires_grad=False)
    tables = torch.arange(4, dtype=torch.int32).view(2, 2)
    cls = BlockDiagonalCausalWithOffsetPaddedKeysMask

    def build(lengths):
        if paged:
            return PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], lengths, tables, 4)
        return cls.from_seqlens([1, 1], 8, lengths)

    bias = build([1, 3])
    for step in range(4):
        expected = memory_efficient_attention(query, key, value, build([1 + step, 3 + step]))
        assert torch.equal(memory_efficient_attention(query, key, value, bias), expected)
        assert torch.equal(
            bias.materialize((2, 16)), build([1 + step, 3 + step]).materialize((2, 16))
        )  # shows the same lengths
        bias.k_seqinfo.seqlen += 1
    assert bias.k_seqinfo.max_seqlen == 3 and list(bias.k_seqinfo.seqlen_py) == [1, 3]


def test_a_prompt_then_single_queries():
    """As a decoding loop does: the queries' offsets are rewritten in place, and their host fields with them."""
    query, key, value = qkv(batch=1, nq=5, nk=16, requires_grad=False)
    bias = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 8, [2, 3])
    prompt = memory_efficient_attention(query, key, value, bias)
    assert prompt.shape == query.shape
    bias.q_seqinfo.seqstart.copy_(torch.arange(3, dtype=torch.int32))
    bias.q_seqinfo.seqstart_py, bias.q_seqinfo.min_seqlen, bias.q_seqinfo.max_seqlen = [0, 1, 2], 1, 1
    bias.k_seqinfo.seqlen += 1
    expected = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 8, [3, 4])
    out = memory_efficient_attention(query[:, :2], key, value, bias)
    assert torch.equal(out, memory_efficient_attention(query[:, :2], key, value, expected))


def test_lengths_past_the_slot_are_refused():
    query, key, value = qkv(batch=1, nq=2, nk=16, requires_grad=False)
    bias = BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 8, [8, 4])
    bias.k_seqinfo.seqlen += 1
    with pytest.raises(ValueError, match=r"sequence 0 is \[0, 9\), expected a range inside \[0, 8\), its own slot"):
        memory_efficient_attention(query, key, value, bias)


def test_boolean_mask_means_attend():
    query, key, value = qkv()
    attend = random((2, 3, 5, 7), seed=5) > 0
    attend[0, 0, 2] = False
    added = torch.zeros(attend.shape).masked_fill(~attend, -torch.inf)
    out = memory_efficient_attention(query, key, value, attend)
    assert torch.equal(out, memory_efficient_attention(query, key, value, added))
    assert (out[0, 2, 0] == 0).all()
