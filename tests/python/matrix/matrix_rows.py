"""The rows of the matrix: every bias class, every way to build one, and every kind of bias tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import attention_problems as ap
import torch
from attention_problems import Problem, dense, gappy, packed, padded, paged
from attn_bias_cases import CASES
from xformers.ops.fmha import attn_bias as ab

# ---- bias tensors: made when heads and dtype are known ----


def scores(batch, heads, nq, nk, dtype, seed, hide=True):
    """Normal numbers; the last query sees no key, the first ones not the first keys."""
    x = torch.randn(batch, *heads, nq, nk, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if hide:
        x[..., : nq // 2, : nk // 3] = -torch.inf
        if nq > 1:
            x[..., nq - 1, :] = -torch.inf
    return x.to(dtype)


def additive(p, heads, dtype, seed):
    return scores(p.batch, heads, p.nq, p.nk, dtype, seed)


def expanded(p, heads, dtype, seed):
    return scores(1, [1] * len(heads), p.nq, p.nk, dtype, seed).expand(p.batch, *heads, -1, -1)


def one_row_for_all_queries(p, heads, dtype, seed):
    return scores(p.batch, heads, 1, p.nk, dtype, seed).expand(p.batch, *heads, p.nq, -1)


def slice_of_wider(p, heads, dtype, seed):
    buffer = torch.full((p.batch, *heads, p.nq, p.nk + 5), torch.nan, dtype=dtype)
    buffer[..., 1 : p.nk + 1] = scores(p.batch, heads, p.nq, p.nk, dtype, seed)
    return buffer[..., 1 : p.nk + 1]


def transposed(p, heads, dtype, seed):
    return scores(p.batch, heads, p.nq, p.nk, dtype, seed).transpose(-1, -2).contiguous().transpose(-1, -2)


def boolean(p, heads, dtype, seed):
    return scores(p.batch, heads, p.nq, p.nk, torch.float32, seed) > -0.5


def per_sequence(p, tensor):
    """What a dense tensor [1, (heads,) nq, nk] adds to each sequence: [sequences, heads, longest nq, longest nk]."""
    tensor = tensor if tensor.ndim > 3 else tensor[:, None]
    longest = [max(s.num_queries for s in p.sequences), max(len(s.key_rows) for s in p.sequences)]
    blocks = []
    for s in p.sequences:
        block = tensor[0, ..., s.first_query : s.first_query + s.num_queries, :][..., list(s.key_rows)]
        room = (0, longest[1] - block.shape[-1], 0, longest[0] - block.shape[-2])
        blocks.append(torch.nn.functional.pad(block.float() if block.dtype == torch.bool else block, room))
    return torch.stack(blocks)


@dataclass
class Row:
    """A bias of the matrix."""

    name: str
    build: Callable[[str], Problem]
    tensor: Callable[..., torch.Tensor] | None = None
    trained: bool = True
    on_top_of: Callable[[torch.Tensor], Any] | None = None  # the bias tensor -> the bias; None: the tensor itself
    takes_3d: bool = False
    in_sequences: bool = False  # the tensor is added by `with_bias`, at the place inside each sequence

    def bias(self, p, tensor):
        if tensor is None:
            return p.attn_bias
        if self.in_sequences:
            return p.attn_bias.with_bias(per_sequence(p, tensor))
        return tensor if self.on_top_of is None else self.on_top_of(tensor)

    @property
    def has_a_device(self) -> bool:
        """Built from tensors, whose device it keeps; the others follow their inputs."""
        return self.name.startswith("Paged") or self.name.endswith("from tensors")

    def problem(self, size, heads, dtype, seed) -> Problem:
        p = self.build(size)
        if self.tensor is not None:
            p.tensor = self.tensor(p, heads, dtype, seed)
            p.trained = self.trained and p.tensor.dtype != torch.bool
        return p


class UsersOwnMask(ab.BlockDiagonalCausalMask):
    """A subclass in somebody's program."""


def no_bias(size):
    return dense(size, ap.full, None)


def tensor_row(name, make, **options):
    return Row(name, no_bias, make, takes_3d=True, **options)


def local_padded(q_lengths, padding, k_lengths):
    return ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(q_lengths, padding, k_lengths, 3)


def batched_entries(q_lengths, k_lengths):
    """As `from_tensor_lists_qkv` makes it."""
    q, k = ([torch.zeros(1, length, 1) for length in lengths] for lengths in (q_lengths, k_lengths))
    return ab.BlockDiagonalMask.from_tensor_lists_qkv(q, k)[0]


def qk(cls):
    return lambda q_lengths, k_lengths: cls.from_seqlens(q_lengths, k_lengths)


def qpk(cls):
    return lambda q_lengths, padding, k_lengths: cls.from_seqlens(q_lengths, padding, k_lengths)


def windowed(make):
    return lambda q_lengths, k_lengths: make(ab.BlockDiagonalMask.from_seqlens(q_lengths, k_lengths))


ROWS = [
    Row("None", no_bias, takes_3d=True),
    tensor_row("Tensor", additive),
    tensor_row("Tensor, expanded over batch and heads", expanded),
    tensor_row("Tensor, expanded over queries", one_row_for_all_queries),
    tensor_row("Tensor, slice of a wider one", slice_of_wider),
    tensor_row("Tensor, transposed in memory", transposed),
    tensor_row("Tensor, not trained", additive, trained=False),
    tensor_row("boolean Tensor", boolean),
    Row("LowerTriangularMask", lambda size: dense(size, ap.causal, ab.LowerTriangularMask()), takes_3d=True),
    Row(
        "LowerTriangularMaskWithTensorBias",
        lambda size: dense(size, ap.causal, None),
        additive,
        on_top_of=lambda t: ab.LowerTriangularMaskWithTensorBias(t),
    ),
    Row(
        "LowerTriangularMask().add_bias, expanded",
        lambda size: dense(size, ap.causal, None),
        expanded,
        on_top_of=lambda t: ab.LowerTriangularMask().add_bias(t),
    ),
    Row(
        "LowerTriangularFromBottomRightMask",
        lambda size: dense(size, ap.causal_bottom_right, ab.LowerTriangularFromBottomRightMask()),
    ),
    Row(
        "LowerTriangularFromBottomRightLocalAttentionMask",
        lambda size: dense(
            size,
            ap.causal_window_bottom_right(4),
            ab.LowerTriangularFromBottomRightMask().make_local_attention(4),
        ),
    ),
    Row(
        "LowerTriangularFromBottomRightLocalAttentionMask, window 1",
        lambda size: dense(
            size, ap.causal_window_bottom_right(1), ab.LowerTriangularFromBottomRightLocalAttentionMask(1)
        ),
    ),
    Row(
        "LocalAttentionFromBottomRightMask",
        lambda size: dense(size, ap.window_bottom_right(3, 2), ab.LocalAttentionFromBottomRightMask(3, 2)),
    ),
    Row(
        "LocalAttentionFromBottomRightMask, the diagonal alone",
        lambda size: dense(size, ap.window_bottom_right(0, 0), ab.LocalAttentionFromBottomRightMask(0, 0)),
    ),
    Row("BlockDiagonalMask", lambda size: packed(size, ap.full, qk(ab.BlockDiagonalMask))),
    Row("BlockDiagonalMask, from tensors", lambda size: packed(size, ap.full, batched_entries)),
    Row("BlockDiagonalCausalMask", lambda size: packed(size, ap.causal, qk(ab.BlockDiagonalCausalMask))),
    Row("BlockDiagonalCausalMask, a user's subclass", lambda size: packed(size, ap.causal, qk(UsersOwnMask))),
    Row(
        "BlockDiagonalCausalFromBottomRightMask",
        lambda size: packed(
            size, ap.causal_bottom_right, qk(ab.BlockDiagonalCausalFromBottomRightMask), lengths=ap.PACKED_WIDE
        ),
    ),
    Row(
        "BlockDiagonalCausalLocalAttentionMask",
        lambda size: packed(
            size, ap.causal_window(3), windowed(lambda m: m.make_local_attention(3)), lengths=ap.PACKED_WIDE
        ),
    ),
    Row(
        "BlockDiagonalCausalLocalAttentionMask, wider than all",
        lambda size: packed(
            size, ap.causal_window(500), windowed(lambda m: m.make_local_attention(500)), lengths=ap.PACKED_WIDE
        ),
    ),
    Row(
        "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
        lambda size: packed(
            size,
            ap.causal_window_bottom_right(3),
            windowed(lambda m: m.make_local_attention_from_bottomright(3)),
            lengths=ap.PACKED_WIDE,
        ),
    ),
    Row("BlockDiagonalPaddedKeysMask", lambda size: padded(size, ap.full, qpk(ab.BlockDiagonalPaddedKeysMask))),
    Row(
        "BlockDiagonalCausalWithOffsetPaddedKeysMask",
        lambda size: padded(size, ap.causal_bottom_right, qpk(ab.BlockDiagonalCausalWithOffsetPaddedKeysMask)),
    ),
    Row(
        "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
        lambda size: padded(size, ap.causal_window_bottom_right(3), local_padded),
    ),
    Row(
        "PagedBlockDiagonalPaddedKeysMask",
        lambda size: paged(size, ap.full, ap.paged_padded(ab.PagedBlockDiagonalPaddedKeysMask)),
    ),
    Row(
        "PagedBlockDiagonalPaddedKeysMask, shared pages",
        lambda size: paged(size, ap.full, ap.paged_padded(ab.PagedBlockDiagonalPaddedKeysMask), shared=True),
    ),
    Row(
        "PagedBlockDiagonalPaddedKeysMask, make_paged",
        lambda size: paged(
            size, ap.full, ap.paged_from_padded(ab.BlockDiagonalPaddedKeysMask, ab.PagedBlockDiagonalPaddedKeysMask)
        ),
    ),
    Row(
        "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask",
        lambda size: paged(
            size, ap.causal_bottom_right, ap.paged_padded(ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask)
        ),
    ),
    Row(
        "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask, make_paged",
        lambda size: paged(
            size,
            ap.causal_bottom_right,
            ap.paged_from_padded(
                ab.BlockDiagonalCausalWithOffsetPaddedKeysMask, ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask
            ),
        ),
    ),
    Row("BlockDiagonalGappyKeysMask", lambda size: gappy(size, ap.full, ab.BlockDiagonalGappyKeysMask, ap.with_gaps)),
    Row(
        "BlockDiagonalGappyKeysMask, unordered",
        lambda size: gappy(size, ap.full, ab.BlockDiagonalGappyKeysMask, ap.backwards),
    ),
    Row(
        "BlockDiagonalGappyKeysMask, overlapping",
        lambda size: gappy(size, ap.full, ab.BlockDiagonalGappyKeysMask, ap.overlapping),
    ),
    Row(
        "BlockDiagonalCausalWithOffsetGappyKeysMask",
        lambda size: gappy(size, ap.causal_bottom_right, ab.BlockDiagonalCausalWithOffsetGappyKeysMask, ap.with_gaps),
    ),
    Row(
        "BlockDiagonalCausalWithOffsetGappyKeysMask, overlapping",
        lambda size: gappy(size, ap.causal_bottom_right, ab.BlockDiagonalCausalWithOffsetGappyKeysMask, ap.overlapping),
    ),
    Row("PagedBlockDiagonalGappyKeysMask", lambda size: paged(size, ap.full, ap.paged_gappy, ap.uneven_starts)),
    Row(
        "PagedBlockDiagonalGappyKeysMask, make_paged",
        lambda size: paged(size, ap.full, ap.paged_from_gappy, ap.uneven_starts),
    ),
    Row(
        "PagedBlockDiagonalGappyKeysMask, shared pages",
        lambda size: paged(size, ap.full, ap.paged_gappy, ap.uneven_starts, shared=True),
    ),
]


def block_layout(nq, nk, size):
    """Three blocks of four, the second query block blind; said element by element in `in_blocks`."""
    rows, columns = (-(-n // block) for n, block in zip((nq, nk), size, strict=True))
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return ((3 * i + j) % 4 != 2) & (i != 1)


def in_blocks(size, pattern=ap.full):
    def visible(i, j, d):
        x, y = i // size[0], j // size[1]
        return ((3 * x + y) % 4 != 2) & (x != 1) & pattern(i, j, d)

    return visible


def in_blocks_of(block, band=lambda mask: mask, pattern=ap.full):
    def build(size):
        _, nq, nk = ap.DENSE[size]
        return dense(size, in_blocks(block, pattern), band(ab.BlockSparseMask(block_layout(nq, nk, block), block)))

    return build


def of_elements(size):
    """`from_mask`: a mask of elements that has nothing to do with blocks."""

    def pattern(i, j, d):
        return (i * 7 + j * j) % 5 < 2

    _, nq, nk = ap.DENSE[size]
    mask = pattern(torch.arange(nq)[:, None], torch.arange(nk)[None, :], 0)
    return dense(size, pattern, ab.BlockSparseMask.from_mask(mask, 48))


def blocks_and_bias(tensor):
    mask = ab.BlockSparseMask(block_layout(*tensor.shape[-2:], (16, 64)), (16, 64))
    return mask.make_causal().add_bias(tensor)


ROWS += [
    Row("BlockSparseMask", in_blocks_of((16, 16)), takes_3d=True),
    Row("BlockSparseMask, 32, causal", in_blocks_of((32, 32), lambda m: m.make_causal(), ap.causal), takes_3d=True),
    Row(
        "BlockSparseMask, 64, causal from the bottom right",
        in_blocks_of((64, 64), lambda m: m.make_causal_from_bottomright(), ap.causal_bottom_right),
        takes_3d=True,
    ),
    Row(
        "BlockSparseMask, 128 x 32, window",
        in_blocks_of((128, 32), lambda m: m.make_local_attention(9), ap.causal_window(9)),
        takes_3d=True,
    ),
    Row("BlockSparseMask, of elements", of_elements, takes_3d=True),
    Row(
        "BlockSparseMask, 16 x 64, causal with a bias",
        lambda size: dense(size, in_blocks((16, 64), ap.causal), None),
        additive,
        on_top_of=blocks_and_bias,
        takes_3d=True,
    ),
]
# The same with a tensor inside each sequence.
_BIASED = [
    "BlockDiagonalMask",
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    "BlockDiagonalCausalWithOffsetPaddedKeysMask",
    "BlockDiagonalGappyKeysMask, overlapping",
    "PagedBlockDiagonalGappyKeysMask",
]
ROWS += [Row(f"{row.name}, with a bias", row.build, additive, in_sequences=True) for row in ROWS if row.name in _BIASED]
# A class that has no row of its own comes with its golden example.
_have_one = {row.name.split(",")[0] for row in ROWS}
ROWS += [
    Row(name, lambda size, case=case: ap.example(case))
    for name, case in CASES.items()
    if name.split(",")[0] not in _have_one
]
