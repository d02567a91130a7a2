"""A tensor bias of packed sequences: kept by what masks do, one for all or one per sequence, strides, bad input."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from devices import on_each_device  # noqa: F401
from score_modifiers import FP64, HEADS, attention_forward, offsets, qkv, random
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import memory_efficient_attention

ALL_MASKS = {
    "BlockDiagonalMask": lambda: ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3]),
    "BlockDiagonalCausalMask": lambda: ab.BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3]),
    "BlockDiagonalCausalFromBottomRightMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_causal_from_bottomright(),
    "BlockDiagonalCausalLocalAttentionMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_local_attention(2),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_local_attention_from_bottomright(2),
    "BlockDiagonalPaddedKeysMask": lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 5, [4, 3]),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        [2, 3], 5, [4, 3]
    ),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": lambda: (
        ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([2, 3], 5, [4, 3], 2)
    ),
    "BlockDiagonalGappyKeysMask": lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([2, 3], [1, 5, 10], [4, 3]),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": lambda: ab.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
        [2, 3], [1, 5, 10], [4, 3]
    ),
    "PagedBlockDiagonalPaddedKeysMask": lambda: ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 3], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
    ),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: (
        ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [2, 3], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
        )
    ),
    "PagedBlockDiagonalGappyKeysMask": lambda: ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
        [2, 3], [0, 1], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
    ),
}


def shared_bias():
    """One of all sequences."""
    return random((1, HEADS, 3, 4), FP64, 5)


def test_every_class_of_sequences_is_here():
    classes = {name for name in ab.__all__ if isinstance(getattr(ab, name), type)}
    classes = {name for name in classes if issubclass(getattr(ab, name), ab.VARLEN_BIASES)}
    assert classes == set(ALL_MASKS)


@pytest.mark.parametrize("name", ALL_MASKS)
def test_with_bias_is_kept(name):
    """By copies, pickles, `to`, `replace` and `materialize`; the mask that it was made from stays as it is."""
    mask, bias = ALL_MASKS[name](), shared_bias()
    biased = mask.with_bias(bias)
    assert type(biased) is type(mask) and mask._scores is None
    for other in (
        biased,
        copy.deepcopy(biased),
        pickle.loads(pickle.dumps(biased)),
        biased.to("cpu"),
        dataclasses.replace(biased),
    ):
        assert type(other) is type(mask) and torch.equal(other._scores.cpu(), bias.cpu())
        assert other._BAND == mask._BAND
    paged = hasattr(mask, "block_tables")
    keys = 8 if paged else (10 if "Padded" in name or "Gappy" in name else 7)
    shown, plain = (m.materialize((1, HEADS, 5, keys), FP64, bias.device) for m in (biased, mask))
    assert torch.equal(shown == -math.inf, plain == -math.inf)
    # What is shown is what attention adds.
    q, k, v = qkv(1, nk=8 if paged else keys, requires_grad=False)
    expected = memory_efficient_attention(q, k, v, shown.contiguous())
    torch.testing.assert_close(memory_efficient_attention(q, k, v, biased), expected)
    with pytest.raises(ValueError, match="attn_bias: the tensor to add has shape"):
        mask.with_bias(bias[:, :, :2])
    assert torch.equal(biased.with_bias(bias * 2)._scores, bias * 2)


def test_with_bias_survives_other_bands_and_pages():
    bias = shared_bias()
    packed = ALL_MASKS["BlockDiagonalMask"]().with_bias(bias)
    for made in (
        packed.make_causal(),
        packed.make_causal_from_bottomright(),
        packed.make_local_attention(2),
        packed.make_local_attention_from_bottomright(2),
    ):
        assert made._scores is bias
    table = torch.tensor([[1, 0, 4], [2, 3, 5]], dtype=torch.int32)
    padded = ALL_MASKS["BlockDiagonalPaddedKeysMask"]().with_bias(bias)
    assert padded.make_paged(table, 2, ab.PagedBlockDiagonalPaddedKeysMask)._scores is bias
    gappy = ALL_MASKS["BlockDiagonalGappyKeysMask"]().with_bias(bias)
    assert gappy.make_paged(table, 2, 5, ab.PagedBlockDiagonalGappyKeysMask)._scores is bias
    x = torch.randn(1, 5, 2)
    assert [part.shape[1] for part in packed.split_queries(x)] == [2, 3]


def test_the_gradient_of_a_shared_bias_is_a_sum_over_sequences():
    """Against a loop of calls, one per sequence; heads shared too."""
    lengths = [70, 3, 200, 131]
    mask = ab.BlockDiagonalCausalMask.from_seqlens(lengths)
    q, k, v = (random((1, sum(lengths), HEADS, 8), FP64, seed) for seed in range(3))
    for heads in (HEADS, 1):
        bias = random((1, heads, 200, 200), FP64, 6).requires_grad_()
        (got,) = torch.autograd.grad(memory_efficient_attention(q, k, v, mask.with_bias(bias)).cos().sum(), bias)
        outs = []
        for qs, ks, vs in zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True):
            n = qs.shape[1]
            own = ab.LowerTriangularMask().add_bias(bias[:, :, :n, :n].expand(1, HEADS, n, n))
            outs.append(memory_efficient_attention(qs, ks, vs, own))
        (want,) = torch.autograd.grad(sum(out.cos().sum() for out in outs), bias)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, HEADS), (1, HEADS), (2, 1), (1, 1)], ids=str)
def test_strides_of_a_bias(shape):
    """`expand`ed over sequences, heads, queries; a slice of a wider one; transposed; booleans."""
    mask = ALL_MASKS["BlockDiagonalMask"]()
    q, k, v = qkv(1, requires_grad=False)
    full = random((*shape, 3, 4), FP64, 5)
    wide = torch.full((*shape, 5, 9), math.nan, dtype=FP64)
    wide[..., 1:4, 2:6] = full
    expected = memory_efficient_attention(q, k, v, mask.with_bias(full))
    for bias in (
        full.expand(2, HEADS, 3, 4),
        wide[..., 1:4, 2:6],
        full.transpose(-1, -2).contiguous().transpose(-1, -2),
    ):
        assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(bias)), expected)
    row = full[..., :1, :].expand(*shape, 3, 4)
    same = memory_efficient_attention(q, k, v, mask.with_bias(row.contiguous()))
    assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(row)), same)
    hidden = torch.zeros_like(full).masked_fill(full < 0, -math.inf)
    same = memory_efficient_attention(q, k, v, mask.with_bias(hidden))
    assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(full >= 0)), same)


def test_bad_packed_bias(device):
    q, k, v = qkv(1, dtype=torch.float32)
    ends = list(offsets().values())
    for shape in (
        () if device == "cuda" else ((1, HEADS, 3, 3), (1, HEADS, 2, 4), (2, HEADS, 2, 4))
    ):  # lengths on the host
        with pytest.raises(ValueError, match=r"attn_bias.shape is .*, expected room for the 3 queries and 4 keys"):
            attention_forward(q, k, v, torch.zeros(shape), -1, -1, False, *ends)
    for shape in ((3, HEADS, 3, 4), (1, 2, 3, 4), (HEADS, 3, 4), (1, 1, 1, 3, 4)):
        with pytest.raises(ValueError, match="attn_bias.shape is .*, expected .2 or 1, 3 or 1, longest seqlen_q"):
            attention_forward(q, k, v, torch.zeros(shape), -1, -1, False, *ends)
    with pytest.raises(ValueError, match="attn_bias.dtype is fp64"):
        attention_forward(q, k, v, torch.zeros(1, 1, 3, 4).double(), -1, -1, False, *ends)


def test_a_cache_that_has_grown_past_its_bias(device):
    """Known on the host it is refused; on a GPU what there is not of the bias is not read, and nothing waits to ask."""
    q, keys = qkv(1, dtype=torch.float32)[0], torch.zeros(1, 10, HEADS, 8)
    mask = ALL_MASKS["BlockDiagonalPaddedKeysMask"]().with_bias(shared_bias().float())
    mask.k_seqinfo.seqlen.fill_(5)
    if device == "cuda":
        assert memory_efficient_attention(q, keys, keys, mask.to(device)).isfinite().all()
        return
    with pytest.raises(ValueError, match="expected room for the 2 queries and 5 keys of sequence 0"):
        memory_efficient_attention(q, keys, keys, mask)
