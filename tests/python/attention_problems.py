"""Problems: who sees whom, said by hand and by the library's bias.

The hand-written side knows nothing of the library: a `Problem` lists the sequences (their query rows, their key rows
wherever those lie) and asks a pattern, written as in the textbook, which pairs are visible.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from xformers.ops.fmha import attn_bias as ab

# ---- patterns: query i and key j of one sequence -> visible; d = keys - queries of that sequence ----


def full(i, j, d):
    return (i == i) & (j == j)


def causal(i, j, d):
    return j <= i


def causal_bottom_right(i, j, d):
    return j <= i + d


def causal_window(w):
    return lambda i, j, d: (i - w < j) & (j <= i)


def causal_window_bottom_right(w):
    return lambda i, j, d: (i + d - w < j) & (j <= i + d)


def window_bottom_right(left, right):
    return lambda i, j, d: (i + d - left <= j) & (j <= i + d + right)


# ---- problems ----


@dataclass
class Sequence:
    batch: int  # row of the batch dimension
    first_query: int
    num_queries: int
    key_rows: list[int]  # where its keys lie, in order


@dataclass
class Problem:
    """One bias at one size. Its tensor, where there is one, comes later: it depends on heads and dtype."""

    batch: int
    nq: int  # rows of the query tensor
    nk: int  # rows of the key and value tensors
    sequences: list[Sequence]
    pattern: Callable[..., torch.Tensor]
    attn_bias: Any = None
    materialize_keys: int | None = None  # last size to ask `materialize` for; None: nk
    tensor: torch.Tensor | None = None  # additive, [batch, (groups, heads,) nq, nk]; or booleans
    trained: bool = False  # whether the gradient of `tensor` is wanted

    def visible(self) -> torch.Tensor:
        """Booleans [batch, 1, nq, nk]."""
        seen = torch.zeros(self.batch, 1, self.nq, self.nk, dtype=torch.bool)
        for s in self.sequences:
            i, j = torch.arange(s.num_queries)[:, None], torch.arange(len(s.key_rows))[None, :]
            block = self.pattern(i, j, len(s.key_rows) - s.num_queries)
            seen[s.batch, 0, s.first_query : s.first_query + s.num_queries, s.key_rows] = block
        return seen

    def used_keys(self) -> torch.Tensor:
        """Booleans [batch, nk]: rows that belong to some sequence."""
        used = torch.zeros(self.batch, self.nk, dtype=torch.bool)
        for s in self.sequences:
            used[s.batch, s.key_rows] = True
        return used


@dataclass
class Example(Problem):
    """A golden example: what is visible is written there."""

    seen: torch.Tensor | None = None  # booleans [nq, nk]

    def visible(self) -> torch.Tensor:
        return self.seen.expand(self.batch, 1, -1, -1)


def key_rows(arguments):
    """Where the keys of each sequence of a golden example lie, by its arguments."""
    lengths = arguments.get("kv_seqlen", arguments["q_seqlen"])
    packed = [sum(lengths[:i]) for i in range(len(lengths))]
    first = [arguments["kv_padding"] * i for i in range(len(lengths))] if "kv_padding" in arguments else packed
    if "block_tables" in arguments:
        first = [0] * len(lengths)
    first = arguments.get("kv_seqstarts", first)
    rows = [range(start, start + length) for start, length in zip(first, lengths, strict=False)]
    if "block_tables" not in arguments:
        return rows
    size = arguments["page_size"]
    tables = zip(rows, arguments["block_tables"], strict=True)
    return [[table[row // size] * size + row % size for row in mine] for mine, table in tables]


def example(case):
    bias, nq, nk = case.build(), case.queries, case.columns
    if isinstance(bias, ab.VARLEN_BIASES):
        batch, sequences = 1, sequences_of(case.arguments["q_seqlen"], key_rows(case.arguments))
    else:
        batch, sequences = 2, [Sequence(b, 0, nq, list(range(nk))) for b in range(2)]
    return Example(batch, nq, nk, sequences, full, bias, case.keys, seen=case.seen)


# size -> (batch, queries, keys) of inputs that are not packed
DENSE = {"one": (3, 1, 40), "few": (2, 7, 12), "tall": (2, 12, 5), "blocks": (1, 70, 150)}
# size -> lengths of the sequences, with fewer keys than queries here and there, and with none
PACKED = {
    "one": ([1, 1, 1, 1], [6, 1, 30, 9]),
    "few": ([3, 0, 7, 1, 4], [5, 4, 7, 0, 9]),
    "tall": ([9, 4], [3, 4]),
    "blocks": ([70, 33, 1], [40, 130, 65]),
}
# the same where every sequence must have as many keys as queries, or more
PACKED_WIDE = {
    "one": ([1, 1, 1, 1], [6, 1, 30, 9]),
    "few": ([3, 0, 7, 1, 4], [5, 4, 7, 2, 9]),
    "tall": ([9, 4], [9, 4]),
    "blocks": ([70, 33, 1], [90, 130, 65]),
}
PAGE_SIZES = {"one": 16, "few": 4, "tall": 1, "blocks": 64}


def dense(size, pattern, attn_bias):
    batch, nq, nk = DENSE[size]
    return Problem(batch, nq, nk, [Sequence(b, 0, nq, list(range(nk))) for b in range(batch)], pattern, attn_bias)


def sequences_of(q_lengths, key_rows):
    first, result = 0, []
    for length, rows in zip(q_lengths, key_rows, strict=True):
        result.append(Sequence(0, first, length, list(rows)))
        first += length
    return result


def packed(size, pattern, build, lengths=PACKED):
    q_lengths, k_lengths = lengths[size]
    starts = [sum(k_lengths[:b]) for b in range(len(k_lengths))]
    rows = [range(start, start + length) for start, length in zip(starts, k_lengths, strict=True)]
    problem_sequences = sequences_of(q_lengths, rows)
    return Problem(1, sum(q_lengths), sum(k_lengths), problem_sequences, pattern, build(q_lengths, k_lengths))


def padded(size, pattern, build, lengths=PACKED):
    q_lengths, k_lengths = lengths[size]
    padding = max(k_lengths) + 2
    rows = [range(b * padding, b * padding + length) for b, length in enumerate(k_lengths)]
    total = padding * len(k_lengths)
    return Problem(
        1, sum(q_lengths), total, sequences_of(q_lengths, rows), pattern, build(q_lengths, padding, k_lengths)
    )


def gappy(size, pattern, cls, place):
    """place: lengths -> (starts, total)."""
    q_lengths, k_lengths = PACKED[size]
    starts, total = place(k_lengths)
    rows = [range(start, start + length) for start, length in zip(starts, k_lengths, strict=True)]
    bias = cls.from_seqlens(q_seqlen=q_lengths, kv_seqstarts=[*starts, total], kv_seqlen=k_lengths)
    return Problem(1, sum(q_lengths), total, sequences_of(q_lengths, rows), pattern, bias)


def with_gaps(k_lengths):
    """In order, a gap before each."""
    starts, end = [], 0
    for b, length in enumerate(k_lengths):
        starts.append(end + b + 1)
        end = starts[-1] + length
    return starts, end + 3


def backwards(k_lengths):
    """The last sequence first."""
    starts, total = with_gaps(k_lengths[::-1])
    return starts[::-1], total


def overlapping(k_lengths):
    """All begin near the start: rows belong to several sequences."""
    return [b % 3 for b in range(len(k_lengths))], max(k_lengths) + 4


def pages_for(size, k_lengths, starts, shared):
    """(page_size, table [sequences, pages], rows of the cache): pages in random order, one more than are needed."""
    page_size = PAGE_SIZES[size]
    longest = max(start + length for start, length in zip(starts, k_lengths, strict=True))
    pages = -(-longest // page_size) + 1
    generator = torch.Generator().manual_seed(len(k_lengths) * 100 + page_size)
    total = pages * len(k_lengths) + 2
    table = torch.randperm(total, generator=generator)[: pages * len(k_lengths)].reshape(len(k_lengths), pages)
    if shared:  # every sequence begins with the first page of sequence 0
        table[:, 0] = table[0, 0]
    return page_size, table.int(), total * page_size


def paged(size, pattern, build, starts_of=None, shared=False):
    """build(q_lengths, starts, k_lengths, table, page_size)."""
    q_lengths, k_lengths = PACKED[size]
    starts = [0] * len(k_lengths) if starts_of is None else starts_of(k_lengths)
    page_size, table, total = pages_for(size, k_lengths, starts, shared)
    rows = [
        [int(table[b, t // page_size]) * page_size + t % page_size for t in range(start, start + length)]
        for b, (start, length) in enumerate(zip(starts, k_lengths, strict=True))
    ]
    bias = build(q_lengths, starts, k_lengths, table, page_size)
    problem = Problem(1, sum(q_lengths), total, sequences_of(q_lengths, rows), pattern, bias)
    problem.materialize_keys = table.numel() * page_size
    return problem


def paged_padded(cls):
    def build(q_lengths, starts, k_lengths, table, page_size):
        return cls.from_seqlens(q_seqlen=q_lengths, kv_seqlen=k_lengths, block_tables=table, page_size=page_size)

    return build


def paged_from_padded(unpaged_cls, cls):
    def build(q_lengths, starts, k_lengths, table, page_size):
        bias = unpaged_cls.from_seqlens(q_seqlen=q_lengths, kv_padding=max(k_lengths), kv_seqlen=k_lengths)
        return bias.make_paged(block_tables=table, page_size=page_size, paged_type=cls)

    return build


def paged_gappy(q_lengths, starts, k_lengths, table, page_size):
    return ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
        q_seqlen=q_lengths, kv_seqstarts=starts, kv_seqlen=k_lengths, block_tables=table, page_size=page_size
    )


def paged_from_gappy(q_lengths, starts, k_lengths, table, page_size):
    padding = table.shape[1] * page_size
    absolute = [b * padding + start for b, start in enumerate(starts)] + [padding * len(starts)]
    bias = ab.BlockDiagonalGappyKeysMask.from_seqlens(q_seqlen=q_lengths, kv_seqstarts=absolute, kv_seqlen=k_lengths)
    return bias.make_paged(
        block_tables=table,
        page_size=page_size,
        notional_padding=padding,
        paged_type=ab.PagedBlockDiagonalGappyKeysMask,
    )


def uneven_starts(k_lengths):
    return [(3 * b + 1) % 5 for b in range(len(k_lengths))]
