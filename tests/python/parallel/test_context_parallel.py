"""Attention over spread sequences: every band and packed sequences, every layout and method; on 2, 3 and 4 processes,
and on up to 8 threads."""

import context_ranks as ranks
import pytest
import torch
from pool import pool
from threads import run_threads


@pytest.mark.parametrize("name", list(ranks.biases()))
def test_bias(name):
    for size, layout in ((2, "auto"), (3, "zigzag"), (4, "documents"), (3, "contiguous")):
        pool(size).run(ranks.attention, name, layout)


@pytest.mark.parametrize("name", list(ranks.biases()))
def test_ring(name):
    for size, layout in ((2, "zigzag"), (3, "striped"), (4, "documents"), (3, "contiguous")):
        pool(size).run(ranks.attention, name, layout, method="ring")


@pytest.mark.parametrize("name", ["none", "causal_window", "packed_causal"])
def test_striped_gather(name):
    pool(3).run(ranks.attention, name, "striped", method="all_gather")


# Heads that the ranks divide, that they do not, fewer key heads than ranks, and groups that are cut.
@pytest.mark.parametrize("heads", [(4,), (5,), (1, 4), (2, 4), (2, 3), (4, 2)])
def test_ulysses(heads):
    for size in (2, 3, 4):
        pool(size).run(ranks.attention, "causal", "auto", heads=heads, method="ulysses")


@pytest.mark.parametrize("name", ["none", "causal_window", "packed_causal", "short"])
def test_hybrid(name):
    for layout in ("contiguous", "zigzag", "documents", "striped"):
        pool(4).run(ranks.attention, name, layout, method="hybrid", heads=(2, 3), head_ranks=2)


@pytest.mark.parametrize("name", list(ranks.biases()))
def test_many_ranks(name):
    for size in (1, 6, 8):
        for method in ("all_gather", "ring"):
            for layout in ("contiguous", "zigzag", "documents", "striped"):
                run_threads(size, ranks.attention, name, layout, method=method)
        run_threads(size, ranks.attention, name, "auto", heads=(3, 4), method="ulysses")
        for head_ranks in (2, 3, 4) if size > 1 else ():
            if size % head_ranks == 0:
                layout = "zigzag" if head_ranks == 2 else "striped"
                run_threads(size, ranks.attention, name, layout, heads=(2, 5), method="hybrid", head_ranks=head_ranks)


def test_heads_and_dtypes():
    pool(2).run(ranks.attention, "causal", "zigzag", heads=(2, 3))
    pool(2).run(ranks.attention, "causal", "zigzag", torch.float32)
    for options in ({}, {"method": "ring"}, {"method": "ring", "layout": "striped"}):
        pool(3).run(ranks.low_precision, **options)
    pool(2).run(ranks.low_precision, method="ulysses")


def test_compiled():
    pool(2).run(ranks.attention, "causal", "zigzag", compiled=True)
    pool(2).run(ranks.attention, "causal", "zigzag", compiled=True, method="ring")
    pool(2).run(ranks.attention, "causal", "auto", heads=(1, 4), compiled=True, method="ulysses")


def test_gradient_of_lse():
    pool(3).run(ranks.gradient_of_lse)
    pool(3).run(ranks.gradient_of_lse, method="ring")
    pool(2).run(ranks.gradient_of_lse, method="ulysses")


@pytest.mark.parametrize("size", [2, 3])
def test_sharding(size):
    pool(size).run(ranks.sharding)


def test_refused():
    pool(2).run(ranks.refused)
