"""Layouts of blocks: the written examples, their rules block by block, options that do not fit."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xformers.components.attention import attention_patterns as patterns
from xformers.components.attention import sparsity_config as configs
from xformers.ops.fmha.attn_bias import BlockSparseMask

import xformers  # noqa: F401

FIXED = ["11110001"] * 4 + ["00011111"] * 4
HORIZONTAL = ["1111001"] * 3 + ["1111111"] + ["0001111"] * 2 + ["1111111"]
VARIABLE = ["11110000"] * 4 + ["10001111"] * 4
BSLONGFORMER = "11111111 11100000 11110000 10111000 10011100 10001110 10000111 10000011".split()
WITH_ATTENTION = [
    configs.FixedSparsityConfig,
    configs.VariableSparsityConfig,
    configs.BigBirdSparsityConfig,
    configs.BSLongformerSparsityConfig,
]


def rows_of(layout):
    return ["".join(str(x) for x in row) for row in layout.tolist()]


@pytest.mark.parametrize(
    "config, seqlen, expected",
    [
        (configs.FixedSparsityConfig(3), 128, FIXED),
        (configs.FixedSparsityConfig(3, horizontal_global_attention=True), 112, HORIZONTAL),
        (configs.VariableSparsityConfig(3), 128, VARIABLE),
        (configs.VariableSparsityConfig(3, global_block_end_indices=[1]), 128, VARIABLE),
        (configs.BSLongformerSparsityConfig(3), 128, BSLONGFORMER),
        (configs.DenseSparsityConfig(3), 48, ["111"] * 3),
    ],
    ids=["fixed", "horizontal", "variable", "variable-ends", "bslongformer", "dense"],
)
def test_examples(config, seqlen, expected):
    """0.0.12: DeepSpeed's layouts."""
    layout = config.make_layout(seqlen)
    assert layout.dtype == torch.int64 and layout.shape == (3, seqlen // 16, seqlen // 16)
    for head in layout:
        assert rows_of(head) == expected


def test_quick_layouts():
    assert rows_of(patterns.quick_fixed_layout(2, 16, 128)[1]) == FIXED
    assert rows_of(patterns.quick_variable_layout(2, 16, 128)[1]) == VARIABLE
    assert rows_of(patterns.quick_bslongformer_layout(2, 16, 128)[1]) == BSLONGFORMER
    assert patterns.quick_bigbird_layout(2, 16, 128).shape == (2, 8, 8)


SEED = st.integers(0, 1000)


def expected_fixed(n, h, local, width, causal, horizontal, pattern_count):
    first = local - (1 + h % pattern_count) * width
    starts = [start + first for start in range(0, n - n % local, local)]
    if n % local:
        starts.append(max(0, min(n - n % local + first, n - width)))
    globals_ = {column for start in starts for column in range(start, min(start + width, n))}

    def sees(i, j):
        near = i // local == j // local
        return (near or j in globals_ or (horizontal and i in globals_)) and (j <= i or not causal)

    return sees


@given(n=st.integers(1, 11), divisor=st.integers(1, 3), width=st.integers(1, 2), causal=st.booleans(), data=st.data())
def test_fixed(n, divisor, width, causal, data):
    local = divisor * width
    pattern_count = data.draw(st.integers(1, divisor))
    horizontal = not causal and data.draw(st.booleans())
    config = configs.FixedSparsityConfig(
        3, 16, True, local, width, "unidirectional" if causal else "bidirectional", horizontal, pattern_count
    )
    layout = config.make_layout(n * 16)
    for h in range(3):
        sees = expected_fixed(n, h, local, width, causal, horizontal, pattern_count)
        for i, j in itertools.product(range(n), repeat=2):
            assert bool(layout[h, i, j]) == bool(sees(i, j)), (h, i, j)


@given(
    n=st.integers(1, 10),
    windows=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    indices=st.lists(st.integers(0, 12), max_size=3),
    lengths=st.none() | st.integers(1, 3),
    causal=st.booleans(),
    horizontal=st.booleans(),
    count=st.integers(0, 10),
    seed=SEED,
)
def test_variable(n, windows, indices, lengths, causal, horizontal, count, seed):
    """Windows and global blocks are there, and beside them as many blocks at most as are random."""
    horizontal = horizontal and not causal
    count = min(count, n)
    ends = None if lengths is None else [index + lengths for index in indices]
    config = configs.VariableSparsityConfig(
        2,
        16,
        True,
        count,
        windows,
        indices,
        ends,
        "unidirectional" if causal else "bidirectional",
        horizontal,
        generator=torch.Generator().manual_seed(seed),
    )
    layout = config.make_layout(n * 16)
    window_of, place = [], 0
    while len(window_of) < n:
        window_of += [place] * windows[min(place, len(windows) - 1)]
        place += 1
    ranges = zip(indices, ends or [index + 1 for index in indices], strict=True)
    globals_ = {column for start, end in ranges for column in range(start, end)}
    for h, i in itertools.product(range(2), range(n)):
        extra = 0
        for j in range(n):
            named = window_of[i] == window_of[j] or j in globals_ or (horizontal and i in globals_)
            named = named and (j <= i or not causal)
            assert layout[h, i, j] or not named, (h, i, j)
            extra += bool(layout[h, i, j]) and not named
        assert extra <= count
        assert layout[h, i].sum() >= min(count, i + 1 if causal else n)
    assert not causal or torch.equal(layout, layout.tril())


@given(
    n=st.integers(1, 10),
    count=st.integers(0, 10),
    width=st.integers(0, 10),
    first=st.integers(0, 10),
    causal=st.booleans(),
    seed=SEED,
)
def test_bigbird(n, count, width, first, causal, seed):
    count, width, first = min(count, n), min(width, n), min(first, n)
    attention = "unidirectional" if causal else "bidirectional"
    config = configs.BigBirdSparsityConfig(
        2, 16, True, count, width, first, attention, generator=torch.Generator().manual_seed(seed)
    )
    layout = config.make_layout(n * 16)
    for h, i in itertools.product(range(2), range(n)):
        extra = 0
        for j in range(n):
            named = (abs(i - j) <= width // 2 or i < first or j < first) and (j <= i or not causal)
            assert layout[h, i, j] or not named
            extra += bool(layout[h, i, j]) and not named
        assert extra <= count and layout[h, i].sum() >= min(count, i + 1 if causal else n)
    assert not causal or torch.equal(layout, layout.tril())
    alone = config.set_random_layout(0, config.setup_layout(n * 16))
    assert alone[0].sum(1).tolist() == [min(count, i + 1) if causal else count for i in range(n)]
    assert not alone[1].any()


@given(n=st.integers(1, 10), width=st.integers(0, 10), causal=st.booleans(), ranges=st.booleans())
def test_bslongformer(n, width, causal, ranges):
    width = min(width, n)
    indices, ends = [0, 5, 20], [2, 6, 25] if ranges else None
    attention = "unidirectional" if causal else "bidirectional"
    layout = configs.BSLongformerSparsityConfig(1, 16, False, width, indices, ends, attention).make_layout(n * 16)
    globals_ = {0, 1, 5} if ranges else {0, 5}
    for i, j in itertools.product(range(n), repeat=2):
        named = (abs(i - j) <= width // 2 or i in globals_ or j in globals_) and (j <= i or not causal)
        assert bool(layout[0, i, j]) == named


def test_one_layout_for_all_heads_or_one_each():
    torch.manual_seed(0)
    shared = configs.BigBirdSparsityConfig(4, num_random_blocks=2).make_layout(320)
    own = configs.BigBirdSparsityConfig(4, different_layout_per_head=True, num_random_blocks=2).make_layout(320)
    assert all(torch.equal(head, shared[0]) for head in shared)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(own, 2))


def test_seeds():
    """The default generator, or one's own: the same seed, the same layout."""
    config = configs.BigBirdSparsityConfig(2, num_random_blocks=3)
    layouts = []
    for _ in range(2):
        torch.manual_seed(5)
        layouts.append(config.make_layout(320))
    assert torch.equal(*layouts) and not torch.equal(layouts[0], config.make_layout(320))
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    given = [configs.BigBirdSparsityConfig(2, num_random_blocks=3, generator=g).make_layout(320) for g in generators]
    assert torch.equal(*given) and torch.equal(given[0], layouts[0])


def test_attributes_and_copies():
    config = configs.VariableSparsityConfig(4, 32, True, local_window_blocks=[2, 3])
    assert (config.num_heads, config.block_size, config.different_layout_per_head) == (4, 32, True)
    assert config.num_layout_heads == 4 and configs.DenseSparsityConfig(4).num_layout_heads == 1
    expected = config.make_layout(320)
    for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert torch.equal(copied.make_layout(320), expected)
    layout = config.setup_layout(64)
    assert layout.shape == (4, 2, 2) and layout.dtype == torch.int64 and not layout.any()


def test_block_sparse_mask_of_a_config():
    config = configs.BSLongformerSparsityConfig(2, 32, attention="unidirectional")
    mask = BlockSparseMask.from_config(config, 256)
    assert mask.block_size == (32, 32) and torch.equal(mask.layout[0].long(), config.make_layout(256))
    elements = patterns.layout_to_pattern(config.make_layout(256), 32)
    assert torch.equal(mask.materialize((1, 2, 256, 256))[0] == 0, elements)
    with pytest.raises(ValueError, match="seq_len is 250, expected a multiple of block_size = 32"):
        BlockSparseMask.from_config(config, 250)


class OnlyWindows(configs.FixedSparsityConfig):
    def set_global_layout(self, h, layout):
        return layout


def test_steps_of_a_subclass():
    assert rows_of(OnlyWindows(2).make_layout(128)[1]) == ["11110000"] * 4 + ["00001111"] * 4


@pytest.mark.parametrize("config", WITH_ATTENTION)
def test_unknown_attention(config):
    with pytest.raises(NotImplementedError, match="attention is sideways, expected bidirectional or unidirectional"):
        config(2, attention="sideways")


BAD = {
    "seq_len is 100, expected a multiple of block_size = 16": lambda: configs.DenseSparsityConfig(2).make_layout(100),
    "num_global_blocks is 3, expected a divisor of num_local_blocks = 4": lambda: configs.FixedSparsityConfig(
        2, num_global_blocks=3
    ),
    "horizontal_global_attention is True, expected False": lambda: configs.FixedSparsityConfig(
        2, attention="unidirectional", horizontal_global_attention=True
    ),
    "num_different_global_patterns is 2, expected 1 where": lambda: configs.FixedSparsityConfig(
        2, num_different_global_patterns=2
    ),
    "num_different_global_patterns is 3, expected 1 to": lambda: configs.FixedSparsityConfig(
        2, different_layout_per_head=True, num_global_blocks=2, num_different_global_patterns=3
    ),
    "global_block_end_indices is 1 numbers, expected 2": lambda: configs.VariableSparsityConfig(
        2, global_block_indices=[0, 4], global_block_end_indices=[2]
    ),
    "global_block_end_indices is 4, expected more than 4": lambda: configs.BSLongformerSparsityConfig(
        2, global_block_indices=[0, 4], global_block_end_indices=[2, 4]
    ),
    "horizontal_global_attention is True": lambda: configs.VariableSparsityConfig(
        2, attention="unidirectional", horizontal_global_attention=True
    ),
    "num_random_blocks is 9, expected 0 to 8": lambda: configs.VariableSparsityConfig(
        2, num_random_blocks=9
    ).make_layout(128),
    "num_random_blocks is 10, expected 0 to 8": lambda: configs.BigBirdSparsityConfig(
        2, num_random_blocks=10
    ).make_layout(128),
    "num_sliding_window_blocks is 9, expected 0 to 8": lambda: configs.BigBirdSparsityConfig(
        2, num_sliding_window_blocks=9
    ).make_layout(128),
    "num_global_blocks is 9, expected 0 to 8": lambda: configs.BigBirdSparsityConfig(
        2, num_global_blocks=9
    ).make_layout(128),
    "num_sliding_window_blocks is 11, expected 0 to 8": lambda: configs.BSLongformerSparsityConfig(
        2, num_sliding_window_blocks=11
    ).make_layout(128),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_options(message):
    with pytest.raises(ValueError, match="SparsityConfig: " + message + ".*Fix: "):
        BAD[message]()
