"""ListOps: nested MIN, MAX, MED (median, rounded down) and SM (sum modulo 10) over digits, in the sizes of Long Range
Arena ("ListOps: A Diagnostic Dataset for Latent Tree Learning", Nangia and Bowman, arXiv:1804.06028)."""

from __future__ import annotations

import random
import statistics
from typing import Any

import torch

OPERATORS = ("MIN", "MAX", "MED", "SM")
MAX_DEPTH, MAX_ARGUMENTS, P_OPERATOR = 10, 10, 0.25
SHORTEST, LONGEST = 500, 2000  # tokens of an expression
FIRST_DIGIT, FIRST_OPERATOR, CLOSE = 1, 11, 15  # 0 is padding

Tree = int | tuple[str, list[Any]]


class _TooLong(Exception):
    pass


def draw_tree(chooser: random.Random, longest: int, depth: int = 1) -> tuple[Tree, int]:
    """(tree, tokens). An operator with 2 to 10 arguments with probability 1/4, else a digit; always the first at the
    root, always the second at the greatest depth."""
    if depth > 1 and (depth > MAX_DEPTH or chooser.random() > P_OPERATOR):
        return chooser.randrange(10), 1
    length, arguments = 2, []
    operator = chooser.choice(OPERATORS)
    for _ in range(chooser.randint(2, MAX_ARGUMENTS)):
        argument, tokens = draw_tree(chooser, longest - length, depth + 1)
        arguments.append(argument)
        length += tokens
        if length > longest:
            raise _TooLong
    return (operator, arguments), length


def value_of(tree: Tree) -> int:
    if isinstance(tree, int):
        return tree
    operator, arguments = tree
    values = [value_of(argument) for argument in arguments]
    if operator == "MIN":
        return min(values)
    if operator == "MAX":
        return max(values)
    if operator == "MED":
        return int(statistics.median(values))
    return sum(values) % 10


def tokens_of(tree: Tree) -> list[int]:
    """An operator with its bracket is one token, the closing bracket another."""
    if isinstance(tree, int):
        return [FIRST_DIGIT + tree]
    operator, arguments = tree
    inside = [token for argument in arguments for token in tokens_of(argument)]
    return [FIRST_OPERATOR + OPERATORS.index(operator), *inside, CLOSE]


def listops_examples(count: int, seq_len: int, seed: int) -> list[dict[str, Any]]:
    """Different expressions of 500 to 2000 tokens; of up to seq_len, and a quarter of that at least, where that is
    less."""
    from . import padded

    longest = min(LONGEST, seq_len)
    shortest = min(SHORTEST, longest // 4)
    chooser = random.Random(seed)
    examples: list[dict[str, Any]] = []
    seen: set[bytes] = set()
    while len(examples) < count:
        try:
            tree, length = draw_tree(chooser, longest)
        except _TooLong:
            continue
        if length < shortest:
            continue
        ids = tokens_of(tree)
        if bytes(ids) in seen:
            continue
        seen.add(bytes(ids))
        examples.append({"input_ids_0": padded(ids, seq_len), "label": torch.tensor(value_of(tree))})
    return examples
