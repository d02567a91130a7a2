"""Attention patterns, element by element against their rules."""

import itertools
import math

import pytest
import torch
from devices import on_each_device  # noqa: F401
from xformers.components.attention import attention_patterns as patterns

import xformers  # noqa: F401

GRIDS = [(5,), (4, 3), (1, 6), (2, 3, 4)]


def points(sizes):
    return list(itertools.product(*map(range, sizes)))


def table(rows, columns, rule):
    return torch.tensor([[rule(a, b) for b in columns] for a in rows], device=torch.get_default_device())


def p_distance(a, b, p, weights=None):
    apart = [abs(x - y) * w for x, y, w in zip(a, b, weights or [1] * len(a), strict=True)]
    if p == 0:
        return float(sum(x != 0 for x in apart))
    if p == math.inf:
        return float(max(apart))
    return float(sum(x**p for x in apart) ** (1 / p))


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
@pytest.mark.parametrize("p", [2.0, 1.0, 0.0, 3.0, math.inf])
def test_local_nd_distance(sizes, p):
    grid = points(sizes)
    distance = patterns.local_nd_distance(*sizes, p=p)
    assert distance.dtype == torch.float32
    assert torch.allclose(distance, table(grid, grid, lambda a, b: p_distance(a, b, p)))
    weights = [0.5, 2, 0][: len(sizes)]
    weighted = patterns.local_nd_distance(*sizes, p=p, weights=weights)
    assert torch.allclose(weighted, table(grid, grid, lambda a, b: p_distance(a, b, p, weights)))
    near = patterns.local_nd_pattern(*sizes, distance=2, p=p)
    assert near.dtype == torch.bool
    assert torch.equal(near, table(grid, grid, lambda a, b: p_distance(a, b, p) < 2))


@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_axial_and_gaussian(sizes):
    grid = points(sizes)
    differing = table(grid, grid, lambda a, b: sum(x != y for x, y in zip(a, b, strict=True)) < 2)
    assert torch.equal(patterns.axial_nd_pattern(*sizes), differing)
    gaussian = patterns.local_nd_gaussian_distribution(*sizes, sigma=1.5)
    assert torch.allclose(gaussian, table(grid, grid, lambda a, b: math.exp(-(p_distance(a, b, 2) ** 2) / 4.5)))


def test_2d_names():
    grid = points((4, 3))
    assert torch.equal(patterns.local_2d_distance(4, 3, 1.0), patterns.local_nd_distance(4, 3, p=1.0))
    assert torch.equal(patterns.local_2d_pattern(4, 3, 1.5), patterns.local_nd_pattern(4, 3, distance=1.5))
    assert torch.equal(
        patterns.local_2d_gausian_distribution(4, 3, 2), patterns.local_nd_gaussian_distribution(4, 3, sigma=2)
    )
    assert torch.equal(patterns.axial_2d_pattern(4, 3), patterns.axial_nd_pattern(4, 3))
    rows = table(grid, grid, lambda a, b: float(abs(a[0] - b[0])))
    assert torch.equal(patterns.horizontal_axial_2d_distance(4, 3), rows)
    assert torch.equal(
        patterns.vertical_axial_2d_distance(4, 3), table(grid, grid, lambda a, b: float(abs(a[1] - b[1])))
    )
    crossing = (rows == 0) | (patterns.vertical_axial_2d_distance(4, 3) == 0)
    assert torch.equal(patterns.axial_2d_pattern(4, 3), crossing)


@pytest.mark.parametrize("seqlen", [0, 1, 7])
def test_1d_patterns(seqlen):
    places = range(seqlen)
    empty = torch.zeros(seqlen, seqlen, dtype=torch.bool)
    for window in (1, 3, 9):
        expected = table(places, places, lambda i, j, w=window: abs(i - j) <= w // 2) if seqlen else empty
        assert torch.equal(patterns.local_1d_pattern(seqlen, window), expected)
    expected = table(places, places, lambda i, j: j <= i) if seqlen else empty
    assert torch.equal(patterns.causal_1d_pattern(seqlen), expected)


def test_global_tokens():
    flags = torch.tensor([True, False, False, True, False])
    expected = table(range(5), range(5), lambda i, j: i in (0, 3) or j in (0, 3))
    assert torch.equal(patterns.global_token_pattern(flags), expected)


@pytest.mark.parametrize("height, width, window", [(4, 6, 2), (6, 3, 3), (8, 4, 4)])
def test_swin_windows(height, width, window):
    """Shifted windows: those of a grid padded by half a window on each side, padding cut off."""
    grid = points((height, width))
    for shift in range(window):
        mask = patterns.swin_attention_pattern(height, width, window, shift)

        def of(point, shift=shift):
            return [math.floor((x - shift) / window) for x in point]

        assert torch.equal(mask, table(grid, grid, lambda a, b, of=of: of(a) == of(b)))
    if window % 2 == 0:
        half = window // 2
        padded = patterns.swin_attention_pattern(height + window, width + window, window)
        inner = torch.zeros(height + window, width + window, dtype=torch.bool)
        inner[half:-half, half:-half] = True
        inner = inner.flatten()
        assert torch.equal(patterns.swin_attention_pattern(height, width, window, half), padded[inner][:, inner])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dilated(k):
    grid = points((5, 4))
    expected = table(grid, grid, lambda a, b: (a[0] - b[0]) % k == 0 and (a[1] - b[1]) % k == 0)
    assert torch.equal(patterns.dilated_2d_pattern(5, 4, k), expected)


@pytest.mark.parametrize("heads", [1, 2, 8, 3, 6, 12])
def test_alibi(heads):
    def slopes(n):
        power = 2 ** math.floor(math.log2(n))
        first = [2 ** (-8 * (h + 1) / power) for h in range(power)]
        return first if power == n else first + slopes(2 * power)[::2][: n - power]

    mask = patterns.alibi_pattern(0.4, (heads, 9, 9))
    expected = [[[slope * j < 0.4 for j in range(9)] for _ in range(9)] for slope in slopes(heads)]
    assert torch.equal(mask, torch.tensor(expected)) and mask.shape == (heads, 9, 9)
    assert patterns.pattern_to_layout(mask, 3).shape == (heads, 3, 3)


def test_random_pattern():
    mask = patterns.random_pattern(300, 0.8)
    assert mask.dtype == torch.bool and mask.device.type == torch.get_default_device().type
    assert abs(float(mask.float().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 300**2)
    torch.manual_seed(3)
    first = patterns.random_pattern(20, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, patterns.random_pattern(20, 0.5))
    given = torch.Generator("cpu").manual_seed(3)
    assert torch.equal(first, patterns.random_pattern(20, 0.5, given))
    assert not torch.equal(first, patterns.random_pattern(20, 0.5, given))


def test_random_pattern_from_probabilities():
    weights = torch.rand(30, 40)
    weights[:, :5] = 0
    for nnz in (0, 1, 100, 30 * 35):
        mask = patterns.random_pattern_from_probability_matrix(weights, nnz)
        assert mask.dtype == torch.bool and mask.shape == weights.shape
        assert int(mask.sum()) == nnz and not mask[:, :5].any()
    with pytest.raises(AssertionError, match="nnz is 1051, expected 0 to 1050"):
        patterns.random_pattern_from_probability_matrix(weights, 1051)
    generators = [torch.Generator("cpu").manual_seed(9) for _ in range(2)]
    first, second = (patterns.random_pattern_from_probability_matrix(weights, 50, g) for g in generators)
    assert torch.equal(first, second)


def test_random_pattern_follows_the_probabilities():
    """Of one element out of four, 4000 times: within five standard deviations."""
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    generator = torch.Generator("cpu").manual_seed(0)
    draws = [patterns.random_pattern_from_probability_matrix(weights, 1, generator) for _ in range(4000)]
    shares = torch.stack(draws).double().mean(0)
    assert ((shares - weights).abs() < 5 * (weights * (1 - weights) / 4000).sqrt()).all()


def test_random_pattern_of_many_elements():
    """More than 2^24 elements, which torch.multinomial refuses; rare ones are found too."""
    weights = torch.zeros(4097, 4097)
    weights[-1, -3:] = 1
    mask = patterns.random_pattern_from_probability_matrix(weights, 3)
    assert int(mask.sum()) == 3 and mask[-1, -3:].all()


SIZES = [(0, 1, 1, 1), (0, 3, 2, 4), (1, 2, 5, 3), (3, 4, 1, 5), (2, 1, 4, 16)]  # heads (0: none), rows, columns, block


@pytest.mark.parametrize("heads, rows, columns, block", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_layouts_and_back(heads, rows, columns, block, share):
    shape = (*((heads,) if heads else ()), rows * block, columns * block)
    mask = torch.rand(shape) < share
    layout = patterns.pattern_to_layout(mask, block)
    assert layout.dtype == torch.int64 and layout.shape == (*shape[:-2], rows, columns)
    for index in itertools.product(*map(range, layout.shape)):
        *head, i, j = index
        block_of = mask[(*head, slice(i * block, i * block + block), slice(j * block, j * block + block))]
        assert bool(layout[index]) == bool(block_of.any())
    whole = patterns.layout_to_pattern(layout, block)
    assert whole.dtype == torch.bool
    assert torch.equal(whole.float(), torch.kron(layout.float(), torch.ones(block, block)))
    assert torch.equal(patterns.pattern_to_layout(whole, block), layout)
    assert (whole | ~mask).all()


def test_block_sparsify_tensor():
    x = torch.randn(2, 3, 8, 12)
    layout = torch.rand(3, 2, 3) > 0.4
    blocks = patterns.block_sparsify_tensor(x, layout.long(), 4)
    places = layout.nonzero().tolist()
    assert blocks.shape == (2, len(places), 4, 4)
    for n, (h, i, j) in enumerate(places):
        assert torch.equal(blocks[:, n], x[:, h, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])


BAD = {
    "window_size is 4, expected an odd number": lambda: patterns.local_1d_pattern(8, 4),
    "sparsity is 0, expected a number between 0 and 1": lambda: patterns.random_pattern(8, 0.0),
    "sparsity is 1, expected a number between 0 and 1": lambda: patterns.random_pattern(8, 1.0),
    "H is 5, expected a multiple of window_size = 2": lambda: patterns.swin_attention_pattern(5, 4, 2),
    "W is 5, expected a multiple of window_size = 2": lambda: patterns.swin_attention_pattern(4, 5, 2),
    "shift_size is 2, expected 0 to window_size - 1": lambda: patterns.swin_attention_pattern(4, 4, 2, 2),
    "shift_size is -1, expected 0 to window_size - 1": lambda: patterns.swin_attention_pattern(4, 4, 2, -1),
    "mask is .* expected last dimensions that are multiples of block_size = 16": lambda: patterns.pattern_to_layout(
        torch.ones(16, 24), 16
    ),
    r"mask is .* expected \[3, 2, 2\]": lambda: patterns.block_sparsify_tensor(
        torch.ones(1, 3, 8, 8), torch.ones(2, 2, 2), 4
    ),
    "weights is 1 numbers, expected 2": lambda: patterns.local_nd_distance(2, 2, weights=[1]),
    r"sizes is \[\], expected at least one": lambda: patterns.axial_nd_pattern(),
    "mask_shape is .* expected": lambda: patterns.alibi_pattern(0.5, (8, 8)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_sizes(message):
    with pytest.raises(AssertionError, match=message + ".*Fix: "):
        BAD[message]()
