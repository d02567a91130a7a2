"""Lengths, offsets and page tables that lie: refused where the host knows them, never read out of bounds otherwise.

Tensors on the device may be changed behind the bias's back, which decoding loops do on purpose. Whatever they then
hold, a call raises or gives numbers of the right shape; under AddressSanitizer a stray read fails the test.
"""

import pytest
import torch
from attention_inputs import qkv
from hypothesis import given
from hypothesis import strategies as st
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

forward = fmha.memory_efficient_attention_forward


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ab.BlockDiagonalMask.from_seqlens([2, -3]),
        lambda: ab.BlockDiagonalMask.from_seqlens([2, 3], [4, -1]),
        lambda: ab.BlockDiagonalMask.from_seqlens([2, 3], [4]),
        lambda: ab.BlockDiagonalMask.from_seqlens(int32(2, 3)),
        lambda: ab.BlockDiagonalCausalFromBottomRightMask.from_seqlens([4], [3]),
        lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [5, 1]),
        lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [-1, 1]),
        lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [1]),
        lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], -4, [1, 1]),
        lambda: ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1, 1], 4, [1, 1], 0),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4], [1, 1]),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4, 8], [1, 5]),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [-1, 4, 8], [1, 1]),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4, 8], [1, -1]),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1], [0, 4, 8], [1, 1]),
        lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([], [0], []),
        lambda: paged([5, 1]),
        lambda: paged([-1, 1]),
        lambda: paged([1]),
        lambda: paged([1, 1], table=int32(0, 1)),
        lambda: paged([1, 1], table=torch.tensor([[0], [1]])),
        lambda: paged([1, 1], table=torch.tensor([[0.0], [1.0]])),
        lambda: paged([1, 1], page_size=0),
        lambda: paged([1, 1], page_size=-4),
        lambda: paged_gappy([0, 4], [1, 1]),
        lambda: paged_gappy([0, -1], [1, 1]),
        lambda: paged_gappy([0, 2], [1, 3]),
        lambda: paged_gappy([0], [1, 1]),
        lambda: padded().make_paged(int32(0, 1)[:, None], 1, ab.PagedBlockDiagonalPaddedKeysMask),
        lambda: padded().make_paged(int32(0)[:, None], 4, ab.PagedBlockDiagonalPaddedKeysMask),
        lambda: padded().make_paged(int32(0, 1)[:, None], 0, ab.PagedBlockDiagonalPaddedKeysMask),
        lambda: gappy().make_paged(int32(0, 1)[:, None], 4, 5, ab.PagedBlockDiagonalGappyKeysMask),
    ],
)
def test_what_the_host_knows(build):
    """A ValueError, most when the bias is built, the rest when it is used."""
    with pytest.raises(ValueError):
        forward(*INPUTS[torch.float32], build())


def padded():
    return ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [3, 2])


def gappy():
    return ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4, 8], [3, 2])


def paged(lengths, table=None, page_size=4):
    table = int32([0], [1]) if table is None else table
    return ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], lengths, table, page_size)


def paged_gappy(starts, lengths):
    return ab.PagedBlockDiagonalGappyKeysMask.from_seqlens([1, 1], starts, lengths, int32([0], [1]), 4)


LIES = [-(2**31), -1000, -1, 0, 1, 3, 5, 9, 1000, 2**31 - 1]
lies = st.sampled_from(LIES)
BIASES = {
    "packed": lambda: ab.BlockDiagonalMask.from_seqlens([1, 1], [4, 4]),
    "causal": lambda: ab.BlockDiagonalCausalMask.from_seqlens([1, 1], [4, 4]),
    "padded": padded,
    "padded, causal": lambda: ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 4, [3, 2]),
    "gappy": gappy,
    "paged": lambda: paged([3, 2]),
    "paged, causal": lambda: ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        [1, 1], [3, 2], int32([0], [1]), 4
    ),
    "paged gappy": lambda: paged_gappy([1, 0], [3, 2]),
}
INPUTS = {
    dtype: qkv(batch=1, nq=2, nk=8, heads=(2,), head_dim=32, dtype=dtype) for dtype in (torch.float32, torch.float16)
}


def call(bias, op=None, dtype=torch.float32):
    """Forward and, without an operator, backward: a refusal or results of the right shapes."""
    inputs = INPUTS[dtype]
    try:
        out = forward(*inputs, bias, op=op)
        assert out.shape == inputs[0].shape
        if op is None:
            out = memory_efficient_attention(*inputs, bias)
            grads = torch.autograd.grad(out.sum(), inputs)
            assert [grad.shape for grad in grads] == [x.shape for x in inputs]
    except (ValueError, NotImplementedError):
        pass


@pytest.mark.parametrize("name", BIASES)
@given(data=st.data())
def test_offsets_that_lie_on_the_device_give_results_or_any_refusal(name, data):
    bias = BIASES[name]()
    fields = [bias.q_seqinfo.seqstart, bias.k_seqinfo.seqstart]
    fields += [getattr(bias.k_seqinfo, "seqlen", None), getattr(bias, "block_tables", None)]
    for field in fields:
        if field is not None and data.draw(st.booleans()):
            field.copy_(torch.tensor([data.draw(lies) for _ in range(field.numel())]).reshape(field.shape))
    call(bias)
    if name not in ("causal",):
        call(bias, fmha.flash.FwOp, torch.float16)
    if name not in ("causal", "packed"):
        call(bias, fmha.triton_splitk.FwOp, torch.float16)


@pytest.mark.parametrize("page", [-(2**31), -1, 2, 1000, 2**31 - 1])
def test_pages_outside_the_cache(page):
    """Refused, as the table of a CPU tensor can be read; entries beyond a sequence's length do not count."""
    bias = paged([3, 2], int32([0, page], [page, 1]))
    with pytest.raises(ValueError, match="page"):
        forward(*INPUTS[torch.float32], bias)
    unused = paged([3, 2], int32([0, page], [1, page]))
    expected = paged([3, 2])
    assert torch.equal(forward(*INPUTS[torch.float32], unused), forward(*INPUTS[torch.float32], expected))


@pytest.mark.parametrize("length", [5, 1000, 2**31 - 1])
@pytest.mark.parametrize("name", ["padded", "padded, causal", "paged"])
def test_lengths_past_the_cache_give_results_or_any_refusal(name, length):
    """A length that grew in place past its padding, or past its pages."""
    bias = BIASES[name]()
    bias.k_seqinfo.seqlen.fill_(length)
    call(bias)


@pytest.mark.parametrize("name", BIASES)
def test_inputs_of_the_wrong_length(name):
    query, key, value = INPUTS[torch.float32]
    bias = BIASES[name]()
    for q, k in ((query[:, :1], 8), (query.repeat(1, 2, 1, 1), 8), (query, 3), (query, 0)):
        if k == 8 or name not in ("paged", "paged, causal", "paged gappy"):
            with pytest.raises(ValueError):
                memory_efficient_attention(q, key[:, :k], value[:, :k], bias)
        else:
            with pytest.raises(ValueError):  # pages that the cache does not have
                memory_efficient_attention(q, key[:, :k], value[:, :k], bias)
