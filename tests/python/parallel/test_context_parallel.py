"""Attention over spread sequences on 2, 3 and 4 processes: every band and packed sequences, every layout."""

import context_ranks as ranks
import pytest
import torch
from pool import pool


@pytest.mark.parametrize("name", list(ranks.biases()))
def test_bias(name):
    for size, layout in ((2, "auto"), (3, "zigzag"), (4, "documents"), (3, "contiguous")):
        pool(size).run(ranks.attention, name, layout)


def test_heads_and_dtypes():
    pool(2).run(ranks.attention, "causal", "zigzag", heads=(2, 3))
    pool(2).run(ranks.attention, "causal", "zigzag", torch.float32)
    pool(3).run(ranks.low_precision)


def test_compiled():
    pool(2).run(ranks.attention, "causal", "zigzag", compiled=True)


def test_gradient_of_lse():
    pool(3).run(ranks.gradient_of_lse)


@pytest.mark.parametrize("size", [2, 3])
def test_sharding(size):
    pool(size).run(ranks.sharding)


def test_refused():
    pool(2).run(ranks.refused)
