"""2:4 sparsity as the rules say it: every tile sorted in fp64. Shares nothing with the kernels."""

import itertools
import math

import torch

ALGORITHMS = ["", "largest_values_greedy", "largest_abs_values_greedy", "causal1122"]


def reference_mask(x, algorithm=""):
    """Which values of x [rows, cols] are kept: bool. Ties: the first in row-major order; NaN before inf."""
    values = x.detach().double().tolist()
    rows, cols = x.shape
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    causal = algorithm == "causal1122"
    for top, left in itertools.product(range(0, rows, 4), range(0, cols, 4)):
        places = []
        for r, c in itertools.product(range(top, min(top + 4, rows)), range(left, min(left + 4, cols))):
            value = abs(values[r][c]) if algorithm == "largest_abs_values_greedy" else values[r][c]
            order = -math.inf if math.isnan(value) else -value
            places.append(((r if causal else 0, not math.isnan(value), order, r, c), r, c))
        in_row, in_col = dict.fromkeys(range(rows), 0), dict.fromkeys(range(cols), 0)
        for _, r, c in sorted(places):
            room = (1, 1, 2, 2)[r % 4] if causal else 2
            if in_row[r] < room and in_col[c] < 2:
                in_row[r] += 1
                in_col[c] += 1
                mask[r, c] = True
    return mask


def mask_of(threads_masks, rows, cols):
    """The bits of a threads_masks tensor as a bool matrix."""
    down, across, _ = threads_masks.shape
    bits = (threads_masks[..., None].int() >> torch.arange(8)) & 1  # [down, across, byte, bit]
    tiles = bits.reshape(down, across, 2, 2, 4, 4)  # [.., lower, right, row, column]
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(8 * down, 8 * across)[:rows, :cols].bool()


def words_of(meta):
    """A cutlass meta [R, 2, C / 32] as the plain matrix of words [R, C / 16]."""
    rows, _, blocks = meta.shape
    words = torch.zeros(rows, 2 * blocks, dtype=torch.int32)
    for row, word in itertools.product(range(rows), range(2 * blocks)):
        to_row, to_word = row // 32 * 32 + row % 8 * 4 + row % 32 // 8, word
        if to_row % 2 != to_word % 2:  # off the diagonal of a 2 x 2
            to_row, to_word = (to_row + 1, to_word - 1) if to_row % 2 == 0 else (to_row - 1, to_word + 1)
        words[row, word] = int(meta[to_row, to_word % 2, to_word // 2]) & 0xFFFF
    return words


def unpacked(packed, meta, rows, cols):
    """The dense matrix of a packed one in the cutlass layout."""
    words = words_of(meta)
    slots = torch.arange(packed.shape[1])
    columns = slots // 2 * 4 + ((words[:, slots // 8] >> (2 * (slots % 8))) & 3)
    dense = torch.zeros(packed.shape[0], 2 * packed.shape[1], dtype=packed.dtype)
    return dense.scatter_(1, columns.long(), packed)[:rows, :cols]
