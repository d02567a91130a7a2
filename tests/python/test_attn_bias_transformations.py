"""Moving, copying, pickling and deriving biases: type and fields survive, a user's own class included."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from attn_bias_cases import CASES, PAGED_STARTS, TABLES, USED, Q
from xformers.ops.fmha import attn_bias as ab

VARLEN = {name: case for name, case in CASES.items() if hasattr(case.build(), "q_seqinfo")}


class MyMask(ab.BlockDiagonalCausalMask):
    """A user's class."""


@dataclass(eq=False)
class MyTagged(ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask):
    tag: str = ""


def assert_same(a, b):
    """Same type, and the same fields all the way down."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor) and not isinstance(a, ab.AttentionBias):
        assert torch.equal(a, b)
    elif hasattr(a, "__dict__"):
        assert vars(a).keys() == vars(b).keys()
        for name in vars(a):
            if name != "_device_given":
                assert_same(getattr(a, name), getattr(b, name))
    else:
        assert a == b


def mine():
    bias = MyMask.from_seqlens([2, 3])
    bias._batch_sizes, bias.note = [1, 1], "kept"
    tagged = MyTagged.from_seqlens([1, 1], [2, 1], TABLES[:2], 2)
    tagged.tag = "kept"
    return [bias, tagged]


@pytest.mark.parametrize("bias", [*(case.build() for case in CASES.values()), *mine()], ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy", "to"])
def test_copies_are_the_same(bias, how):
    result = {
        "pickle": lambda: pickle.loads(pickle.dumps(bias)),
        "deepcopy": lambda: copy.deepcopy(bias),
        "copy": lambda: copy.copy(bias),
        "to": lambda: bias.to("cpu"),
    }[how]()
    assert_same(result, bias)
    if how == "deepcopy" and hasattr(bias, "q_seqinfo"):
        assert result.q_seqinfo is not bias.q_seqinfo and result.q_seqinfo.seqstart is not bias.q_seqinfo.seqstart


@pytest.mark.parametrize("name", VARLEN)
def test_to_moves_every_tensor_and_nothing_else(name):
    bias = VARLEN[name].build()
    moved = bias.to("meta")
    assert type(moved) is type(bias)
    for info in (moved.q_seqinfo, moved.k_seqinfo):
        assert info.seqstart.is_meta and getattr(info, "seqlen", info.seqstart).is_meta
    assert bias.q_seqinfo.seqstart.device.type == bias.k_seqinfo.seqstart.device.type == "cpu"
    if hasattr(bias, "block_tables"):
        assert moved.block_tables.is_meta and not bias.block_tables.is_meta and moved.page_size == bias.page_size
    assert moved._BAND == bias._BAND
    assert getattr(moved, "_window_size", None) == getattr(bias, "_window_size", None)


def test_one_seqinfo_for_both_stays_one():
    bias = ab.BlockDiagonalMask.from_seqlens([2, 3])
    moved = bias.to("meta")
    assert bias.k_seqinfo is bias.q_seqinfo and moved.k_seqinfo is moved.q_seqinfo


def test_whole_masks_hold_nothing_to_move():
    for name in (
        "LowerTriangularFromBottomRightMask",
        "LowerTriangularFromBottomRightLocalAttentionMask",
        "LocalAttentionFromBottomRightMask",
    ):
        bias = CASES[name].build()
        assert bias.to("meta") is bias


@pytest.mark.parametrize("name", VARLEN)
def test_devices(name):
    case = VARLEN[name]
    on_meta = case.build(device="meta")
    assert on_meta.q_seqinfo.seqstart.is_meta and on_meta.k_seqinfo.seqstart.is_meta
    expected = "cuda" if torch.cuda.is_available() and not name.startswith("Paged") else "cpu"
    assert case.build().q_seqinfo.seqstart.device.type == expected


MADE = {
    "make_causal": (lambda b: b.make_causal(), ab.BlockDiagonalCausalMask),
    "make_causal_from_bottomright": (
        lambda b: b.make_causal_from_bottomright(),
        ab.BlockDiagonalCausalFromBottomRightMask,
    ),
    "make_local_attention": (lambda b: b.make_local_attention(2), ab.BlockDiagonalCausalLocalAttentionMask),
    "make_local_attention_from_bottomright": (
        lambda b: b.make_local_attention_from_bottomright(2),
        ab.BlockDiagonalCausalLocalAttentionFromBottomRightMask,
    ),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("cls", [ab.BlockDiagonalMask, ab.BlockDiagonalCausalMask, MyMask])
def test_derived_masks_share_the_sequences(name, cls):
    make, expected = MADE[name]
    bias = cls.from_seqlens([2, 3], [2, 4])
    bias._batch_sizes = [1, 1]
    made = make(bias)
    assert type(made) is expected and type(bias) is cls
    assert made.q_seqinfo is bias.q_seqinfo and made.k_seqinfo is bias.k_seqinfo and made._batch_sizes == [1, 1]
    assert getattr(made, "_window_size", 2) == 2


def test_class_relations():
    for child, parent in [
        (ab.LowerTriangularMaskWithTensorBias, ab.LowerTriangularMask),
        (ab.LowerTriangularFromBottomRightLocalAttentionMask, ab.LowerTriangularFromBottomRightMask),
        (ab.BlockDiagonalCausalMask, ab.BlockDiagonalMask),
        (ab.BlockDiagonalCausalFromBottomRightMask, ab.BlockDiagonalMask),
        (ab.BlockDiagonalCausalLocalAttentionMask, ab.BlockDiagonalCausalMask),
        (ab.BlockDiagonalCausalLocalAttentionFromBottomRightMask, ab.BlockDiagonalCausalFromBottomRightMask),
        (ab.BlockDiagonalCausalWithOffsetPaddedKeysMask, ab.BlockDiagonalPaddedKeysMask),
        (ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask, ab.BlockDiagonalPaddedKeysMask),
        (ab.BlockDiagonalCausalWithOffsetGappyKeysMask, ab.BlockDiagonalGappyKeysMask),
        (ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask, ab.PagedBlockDiagonalPaddedKeysMask),
    ]:
        assert issubclass(child, parent) and issubclass(parent, ab.AttentionBias)
    assert not issubclass(ab.BlockDiagonalPaddedKeysMask, ab.BlockDiagonalMask)
    assert all(isinstance(case.build(), ab.VARLEN_BIASES) == (name in VARLEN) for name, case in CASES.items())
    assert isinstance(MyMask.from_seqlens([1]), ab.VARLEN_BIASES)
    assert ab.PagedBlockDiagonalPaddedKeysMask._UNPAGED_TYPE is ab.BlockDiagonalPaddedKeysMask
    assert ab.PagedBlockDiagonalGappyKeysMask._UNPAGED_TYPE is ab.BlockDiagonalGappyKeysMask


PAGED_FORMS = {
    ab.BlockDiagonalPaddedKeysMask: ab.PagedBlockDiagonalPaddedKeysMask,
    ab.BlockDiagonalCausalWithOffsetPaddedKeysMask: ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
}


@pytest.mark.parametrize("cls", PAGED_FORMS, ids=lambda c: c.__name__)
def test_make_paged_of_padded_keys(cls):
    bias = cls.from_seqlens(Q, 5, [5, 0, 4, 1])
    paged = bias.make_paged(TABLES, 2, PAGED_FORMS[cls])
    assert type(paged) is PAGED_FORMS[cls] and paged.block_tables is TABLES and paged.page_size == 2
    assert paged.q_seqinfo is bias.q_seqinfo
    assert paged.k_seqinfo.padding == 6 and paged.k_seqinfo.seqstart_py == [0, 6, 12, 18, 24]
    assert paged.k_seqinfo.seqstart.tolist() == [0, 6, 12, 18, 24] and paged.k_seqinfo.seqlen.tolist() == [5, 0, 4, 1]
    assert bias.k_seqinfo.padding == 5 and bias.k_seqinfo.seqstart_py == [0, 5, 10, 15, 20]  # as it was
    direct = PAGED_FORMS[cls].from_seqlens(Q, [5, 0, 4, 1], TABLES, 2)
    assert torch.equal(paged.materialize((10, 24)), direct.materialize((10, 24)))


def test_make_paged_of_gappy_keys():
    bias = ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 101, 200], [3, 4])
    paged = bias.make_paged(TABLES[:2], 2, 100, ab.PagedBlockDiagonalGappyKeysMask)
    assert type(paged) is ab.PagedBlockDiagonalGappyKeysMask
    assert paged.k_seqinfo.seqstart_py == [1, 1] and paged.k_seqinfo.seqstart.tolist() == [1, 1]
    assert bias.k_seqinfo.seqstart_py == [1, 101, 200]
    direct = ab.PagedBlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 1], [3, 4], TABLES[:2], 2)
    assert torch.equal(paged.materialize((2, 12)), direct.materialize((2, 12)))


def test_a_users_paged_class():
    bias = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(Q, 6, USED)
    assert type(bias.make_paged(TABLES, 2, MyTagged)) is MyTagged


def test_page_reached_twice_takes_the_last_copy():
    tables = torch.tensor([[1, 1]], dtype=torch.int32)
    mask = ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [3], tables, 2).materialize((1, 4))
    assert mask.tolist() == [[-torch.inf, -torch.inf, 0.0, -torch.inf]]


def test_entries_past_a_sequence_hide_nothing():
    tables = torch.tensor([[0, 0], [1, 0]], dtype=torch.int32)  # tables are often filled up with 0
    bias = ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2, 1], tables, 2)
    assert bias.materialize((2, 8)).tolist() == [
        [0, 0, -torch.inf, -torch.inf],
        [-torch.inf, -torch.inf, 0, -torch.inf],
    ]


def padded(length=6):
    return ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 8, [length, 1])


def gappy():
    return ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 101, 200], [3, 4])


def window():
    return ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1, 1], 8, [6, 1], 2)


T2 = TABLES[:2]
PAGED = ab.PagedBlockDiagonalPaddedKeysMask
PAGED_CAUSAL = ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask
PAGED_GAPPY = ab.PagedBlockDiagonalGappyKeysMask


@pytest.mark.parametrize(
    "build, fragment",
    [
        (lambda: padded(8).make_paged(T2, 2, PAGED), "longest sequence of keys is 8, expected at most 6"),
        (lambda: padded().make_paged(TABLES, 2, PAGED), "block_tables has shape [4, 3], expected [2, pages]"),
        (lambda: padded().make_paged(T2[0], 2, PAGED), "block_tables has shape [3], expected [2, pages]"),
        (lambda: padded().make_paged(T2, 0, PAGED), "page_size is 0, expected 1 or more"),
        (lambda: padded().make_paged(T2, 2, PAGED_CAUSAL), "expected the paged form of BlockDiagonalPaddedKeysMask"),
        (lambda: padded().make_paged(T2, 2, PAGED_GAPPY), "expected the paged form of BlockDiagonalPaddedKeysMask"),
        (lambda: padded().make_paged(T2, 2, int), "paged_type is int, expected the paged form"),
        (lambda: window().make_paged(T2, 2, PAGED), "expected the paged form of BlockDiagonalCausalLocal"),
        (lambda: gappy().make_paged(T2, 2, 102, PAGED_GAPPY), "sequence 1 are [-1, 3) of its own pages"),
        (lambda: gappy().make_paged(T2, 2, 90, PAGED_GAPPY), "sequence 1 are [11, 15) of its own pages"),
        (lambda: gappy().make_paged(T2, 1, 100, PAGED_GAPPY), "sequence 0 are [1, 4) of its own pages"),
        (lambda: gappy().make_paged(T2, 2, 100, PAGED), "expected the paged form of BlockDiagonalGappyKeysMask"),
        (lambda: PAGED.from_seqlens([1, 1], [7, 1], T2, 2), "longest sequence of keys is 7, expected at most 6"),
        (lambda: PAGED.from_seqlens([1, 1], [1], T2, 2), "2 query lengths and 1 key lengths"),
        (lambda: PAGED.from_seqlens([1], [1], T2, 2), "block_tables has shape [2, 3], expected [1, pages]"),
        (lambda: PAGED.from_seqlens([1, 1], [1, 1], T2.long(), 2), "block_tables.dtype is int64, expected int32"),
        (lambda: PAGED.from_seqlens([1, 1], [1, 1], T2, -1), "page_size is -1, expected 1 or more"),
        (lambda: PAGED_GAPPY.from_seqlens([1, 1], [4, 0], [3, 1], T2, 2), "is 7, expected at most 6"),
        (lambda: PAGED_GAPPY.from_seqlens([1, 1], [1, 1, 9], [3, 1], T2, 2), "there are 3 starts, expected 2"),
        (lambda: PAGED_GAPPY.from_seqlens(Q, PAGED_STARTS, [1], TABLES, 2), "4 query lengths and 1 key lengths"),
        (lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([1], [0, 2], [1, 1]), "1 query lengths and 2 key lengths"),
        (lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([], [0], []), "there are no sequences"),
        (lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1], 4, [5]), "longest sequence is 5, expected at most"),
        (lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [4]), "2 query lengths and 1 key lengths"),
        (lambda: ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens([1], 4, [4]), "window size is 0"),
        (lambda: window().from_seqlens_local([1], 4, [4], -1), "the window size is -1, expected 1 or more"),
        (lambda: ab.LowerTriangularFromBottomRightMask().make_local_attention(0), "the window size is 0"),
        (lambda: ab.BlockDiagonalMask.from_seqlens([1]).make_local_attention(0), "the window size is 0"),
        (
            lambda: ab.BlockDiagonalMask.from_seqlens([1]).make_local_attention_from_bottomright(-2),
            "the window size is -2",
        ),
        (
            lambda: ab.BlockDiagonalMask.from_seqlens([1, 5], [1, 3]).make_causal_from_bottomright(),
            "block 1 has 3 keys, expected at least its number of queries, 5",
        ),
    ],
)
def test_bad_values(build, fragment):
    with pytest.raises(ValueError) as error:
        build()
    assert fragment in str(error.value) and "Fix: " in str(error.value)


def test_window_that_leaves_a_query_without_keys():
    with pytest.raises(RuntimeError, match="block 1 has 3 keys, expected more than 3 for 5 queries and a window of 2"):
        ab.BlockDiagonalMask.from_seqlens([1, 5], [1, 3]).make_local_attention(2)
    assert ab.BlockDiagonalMask.from_seqlens([1, 5], [1, 3]).make_local_attention(3)._window_size == 3
    assert ab.BlockDiagonalMask.from_seqlens([4, 6]).make_local_attention(100)._window_size == 100


def test_arguments_kept_for_old_programs():
    cls = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask
    bias = cls.from_seqlens(q_seqlen=Q, kv_padding=6, kv_seqlen=USED, causal_diagonal=torch.tensor([1]))
    assert torch.equal(bias.materialize((10, 24)), cls.from_seqlens(Q, 6, USED).materialize((10, 24)))
    local = ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask
    assert local.from_seqlens(Q, 6, USED, window_size=2)._window_size == 2


def test_building_does_not_wait_for_a_device():
    """Nothing is read back: every tensor may be on a device that has no data."""
    for name, case in VARLEN.items():
        if not name.startswith("Paged"):  # their table comes from the caller
            assert case.build(device="meta").lower(torch.device("meta")).cu_seqlens_q.is_meta
