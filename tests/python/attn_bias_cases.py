"""One or more examples of every bias class, each with the rule of who sees whom, written down anew.

`rule(i, j)` takes a row and a column of the whole score matrix. Sequences are (first query, end, first key, end).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from xformers.ops.fmha import attn_bias as ab


@dataclass
class Case:
    build: Callable[..., ab.AttentionBias]  # takes device=
    queries: int
    keys: int  # columns to materialize
    rule: Callable[[int, int], bool]
    columns: int | None = None  # rows of key and value, where they are more than `keys`

    def dense(self) -> torch.Tensor:
        """[queries, columns] of 0 and -inf, by the rule."""
        rows = [
            [0.0 if self.rule(i, j) else -torch.inf for j in range(self.columns or self.keys)]
            for i in range(self.queries)
        ]
        return torch.tensor(rows).view(self.queries, self.columns or self.keys)


def sequences(ranges, visible):
    """The rule that applies visible(i, j, nq, nk), counted inside a sequence, to each of the ranges."""

    def rule(i, j):
        for q0, q1, k0, k1 in ranges:
            if q0 <= i < q1:
                return k0 <= j < k1 and visible(i - q0, j - k0, q1 - q0, k1 - k0)
        return False

    return rule


def full(i, j, nq, nk):
    return True


def top_left(i, j, nq, nk):
    return j <= i


def bottom_right(i, j, nq, nk):
    return j <= i + nk - nq


def window(w, aligned):
    def visible(i, j, nq, nk):
        d = nk - nq if aligned else 0
        return i + d - w < j <= i + d

    return visible


def local(left, right):
    return lambda i, j, nq, nk: i + nk - nq - left <= j <= i + nk - nq + right


def whole(nq, nk, visible):
    return lambda i, j: visible(i, j, nq, nk)


# lengths of queries and keys; offsets of both
Q, K = [3, 1, 4, 2], [5, 1, 4, 6]
PACKED = [(0, 3, 0, 5), (3, 4, 5, 6), (4, 8, 6, 10), (8, 10, 10, 16)]
# keys in slots of 6
USED = [5, 0, 6, 1]
PADDED = [(0, 3, 0, 5), (3, 4, 6, 6), (4, 8, 12, 18), (8, 10, 18, 19)]
# keys anywhere, out of order and overlapping
STARTS, GAPPY_USED = [7, 0, 5, 12, 16], [5, 2, 4, 1]
GAPPY = [(0, 3, 7, 12), (3, 4, 0, 2), (4, 8, 5, 9), (8, 10, 12, 13)]
# pages of 2: sequence b has 3 of 13
TABLES = torch.tensor([[4, 0, 9], [2, 12, 3], [7, 8, 1], [5, 10, 6]], dtype=torch.int32)
PAGED_STARTS, PAGED_USED = [1, 0, 3, 2], [4, 6, 2, 3]  # of 6


def paged(starts, lengths, visible):
    def rule(i, j):
        for b, (q0, q1) in enumerate([(0, 3), (3, 4), (4, 8), (8, 10)]):
            if q0 <= i < q1:
                for t in range(starts[b], starts[b] + lengths[b]):
                    if int(TABLES[b, t // 2]) * 2 + t % 2 == j:
                        return visible(i - q0, t - starts[b], q1 - q0, lengths[b])
        return False

    return rule


def packed_case(build, visible, q=Q, k=K, ranges=PACKED):
    return Case(lambda device=None: build(q, k, device), sum(q), sum(k), sequences(ranges, visible))


def block_diagonal(q, k, device):
    return ab.BlockDiagonalMask.from_seqlens(q, k, device=device)


def whole_case(bias, visible, nq=5, nk=7):
    return Case(lambda device=None: bias, nq, nk, whole(nq, nk, visible))


CASES = {
    "LowerTriangularMask": whole_case(ab.LowerTriangularMask(), top_left),
    "LowerTriangularMask, fewer keys": whole_case(ab.LowerTriangularMask(), top_left, 7, 4),
    "LowerTriangularFromBottomRightMask": whole_case(ab.LowerTriangularFromBottomRightMask(), bottom_right),
    "LowerTriangularFromBottomRightMask, fewer keys": whole_case(
        ab.LowerTriangularFromBottomRightMask(), bottom_right, 7, 4
    ),
    "LowerTriangularFromBottomRightLocalAttentionMask": whole_case(
        ab.LowerTriangularFromBottomRightMask().make_local_attention(2), window(2, True)
    ),
    "LowerTriangularFromBottomRightLocalAttentionMask, window 1": whole_case(
        ab.LowerTriangularFromBottomRightLocalAttentionMask(1), window(1, True)
    ),
    "LocalAttentionFromBottomRightMask": whole_case(ab.LocalAttentionFromBottomRightMask(1, 2), local(1, 2)),
    "LocalAttentionFromBottomRightMask, diagonal": whole_case(ab.LocalAttentionFromBottomRightMask(0, 0), local(0, 0)),
    "BlockDiagonalMask": packed_case(block_diagonal, full),
    "BlockDiagonalCausalMask": packed_case(lambda *a: block_diagonal(*a).make_causal(), top_left),
    "BlockDiagonalCausalFromBottomRightMask": packed_case(
        lambda *a: block_diagonal(*a).make_causal_from_bottomright(), bottom_right
    ),
    "BlockDiagonalCausalLocalAttentionMask": packed_case(
        lambda *a: block_diagonal(*a).make_local_attention(2), window(2, False)
    ),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": packed_case(
        lambda *a: block_diagonal(*a).make_local_attention_from_bottomright(3), window(3, True)
    ),
    "BlockDiagonalPaddedKeysMask": Case(
        lambda device=None: ab.BlockDiagonalPaddedKeysMask.from_seqlens(Q, 6, USED, device=device),
        10,
        24,
        sequences(PADDED, full),
    ),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": Case(
        lambda device=None: ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(Q, 6, USED, device=device),
        10,
        24,
        sequences(PADDED, bottom_right),
    ),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": Case(
        lambda device=None: ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(
            Q, 6, USED, 2, device=device
        ),
        10,
        24,
        sequences(PADDED, window(2, True)),
    ),
    "BlockDiagonalGappyKeysMask": Case(
        lambda device=None: ab.BlockDiagonalGappyKeysMask.from_seqlens(Q, STARTS, GAPPY_USED, device=device),
        10,
        16,
        sequences(GAPPY, full),
    ),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": Case(
        lambda device=None: ab.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
            Q, STARTS, GAPPY_USED, device=device
        ),
        10,
        16,
        sequences(GAPPY, bottom_right),
    ),
    "PagedBlockDiagonalPaddedKeysMask": Case(
        lambda device=None: ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            Q, PAGED_USED, TABLES.to(device or "cpu"), 2, device=device
        ),
        10,
        24,
        paged([0] * 4, PAGED_USED, full),
        columns=26,
    ),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": Case(
        lambda device=None: ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            Q, PAGED_USED, TABLES.to(device or "cpu"), 2, device=device
        ),
        10,
        24,
        paged([0] * 4, PAGED_USED, bottom_right),
        columns=26,
    ),
    "PagedBlockDiagonalGappyKeysMask": Case(
        lambda device=None: ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
            Q, PAGED_STARTS, PAGED_USED, TABLES.to(device or "cpu"), 2, device=device
        ),
        10,
        24,
        paged(PAGED_STARTS, PAGED_USED, full),
        columns=26,
    ),
}
