"""The fields that programs read and rewrite: offsets, lengths, splitting, moving."""

import pytest
import torch
from xformers.ops.fmha.attn_bias import _GappySeqInfo, _PaddedSeqLenInfo, _SeqLenInfo

default = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def test_packed():
    info = _SeqLenInfo.from_seqlens([2, 3, 2])
    assert info.seqstart_py == [0, 2, 5, 7] and info.seqstart.tolist() == [0, 2, 5, 7]
    assert info.seqstart.dtype == torch.int32 and info.seqstart.device == default
    assert (info.max_seqlen, info.min_seqlen) == (3, 2)
    assert list(info.intervals()) == [(0, 2), (2, 5), (5, 7)]


def test_padded():
    info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3, 2], 4)
    assert info.seqstart_py == [0, 4, 8, 12] == info.seqstart.tolist()
    assert info.seqlen.tolist() == [2, 3, 2] == list(info.seqlen_py) and info.padding == 4
    assert info.seqlen.dtype == info.seqstart.dtype == torch.int32
    assert (info.max_seqlen, info.min_seqlen) == (3, 2)
    assert list(info.intervals()) == [(0, 2), (4, 7), (8, 10)]


@pytest.mark.parametrize("paged", [False, True])
def test_gappy(paged):
    starts = [5, 0, 3] if paged else [5, 0, 3, 20]
    info = _GappySeqInfo.from_seqlens_gappy(starts, [2, 0, 4], paged, device="cpu")
    assert info.seqstart_py == starts == info.seqstart.tolist()
    assert info.seqlen.tolist() == [2, 0, 4] == list(info.seqlen_py)
    assert (info.max_seqlen, info.min_seqlen) == (4, 0)
    assert list(info.intervals()) == [(5, 7), (0, 0), (3, 7)]


@pytest.mark.parametrize("build", [_SeqLenInfo.from_seqlens, lambda x: _PaddedSeqLenInfo.from_seqlens_padded(x, 9)])
def test_extremes(build):
    empty = build([])
    assert (empty.max_seqlen, empty.min_seqlen) == (-1, -1) and list(empty.intervals()) == []
    zeros = build([0, 3])
    assert (zeros.max_seqlen, zeros.min_seqlen) == (3, 0)


def test_the_wrong_factory_is_refused():
    with pytest.raises(RuntimeError, match="use from_seqlens_padded"):
        _PaddedSeqLenInfo.from_seqlens([1, 2])
    with pytest.raises(NotImplementedError, match="use from_seqlens_gappy"):
        _GappySeqInfo.from_seqlens([1, 2])


def infos(device=None):
    return [
        _SeqLenInfo.from_seqlens([2, 3], device=device),
        _PaddedSeqLenInfo.from_seqlens_padded([2, 3], 4, device=device),
        _GappySeqInfo.from_seqlens_gappy([1, 0, 9], [2, 3], False, device=device),
    ]


@pytest.mark.parametrize("index", range(3))
def test_moving(index):
    info = infos("cpu")[index]
    assert info.to("cpu") is info and info.to(torch.device("cpu")) is info
    moved = info.to("meta")
    assert type(moved) is type(info) and moved is not info
    assert {name: value for name, value in vars(moved).items() if not isinstance(value, torch.Tensor)} == {
        name: value for name, value in vars(info).items() if not isinstance(value, torch.Tensor)
    }
    tensors = [name for name, value in vars(info).items() if isinstance(value, torch.Tensor)]
    assert all(getattr(moved, name).is_meta and not getattr(info, name).is_meta for name in tensors)
    assert ("seqlen" in tensors) == (index > 0)


@pytest.mark.parametrize("index", range(3))
def test_device_is_honoured(index):
    assert infos("meta")[index].seqstart.is_meta and infos()[index].seqstart.device == default


def test_split():
    info = _SeqLenInfo.from_seqlens([2, 2, 3])
    x = torch.arange(14).view(1, 7, 2)
    parts = info.split(x)
    assert [list(part.shape) for part in parts] == [[1, 2, 2], [1, 2, 2], [1, 3, 2]]
    assert torch.equal(torch.cat(parts, 1), x)
    grouped = info.split(x, [2, 1])
    assert [list(part.shape) for part in grouped] == [[2, 2, 2], [1, 3, 2]]
    assert torch.equal(grouped[0][1], x[0, 2:4])
    with pytest.raises(ValueError, match=r"shape \[1, 6, 2\], expected \[1, 7, \.\.\.\]"):
        info.split(x[:, :6])
    for other in infos()[1:]:
        with pytest.raises(NotImplementedError):
            other.split(x)


def test_identity_is_equality():
    """Comparing fields would compare tensors element by element, and fail."""
    first, second = infos()[0], infos()[0]
    assert first == first and first != second and len({first, second}) == 2


@pytest.mark.parametrize(
    "build, fragment",
    [
        (lambda: _SeqLenInfo.from_seqlens(torch.tensor([1])), "the sequence lengths are a tensor, expected Python int"),
        (lambda: _SeqLenInfo.from_seqlens([2, -1]), "a sequence length is -1, expected 0 or more"),
        (lambda: _PaddedSeqLenInfo.from_seqlens_padded([5], 4), "longest sequence is 5, expected at most the padding"),
        (lambda: _PaddedSeqLenInfo.from_seqlens_padded([], -4), "expected at most the padding, -4"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([], [], False), "there are no sequences"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([0, 1], [1, 1], False), "there are 2 starts, expected 3"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([0, 1, 2], [1, 1], True), "there are 3 starts, expected 2"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([3, 4], [2], False), "is [3, 5), expected a range inside [0, 4)"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([-1, 2], [1], False), "a sequence start is -1, expected 0 or more"),
        (lambda: _GappySeqInfo.from_seqlens_gappy([0, 2], [-1], False), "a sequence length is -1, expected 0 or more"),
    ],
)
def test_bad_values(build, fragment):
    with pytest.raises(ValueError) as error:
        build()
    assert fragment in str(error.value) and "Fix: " in str(error.value)


@pytest.mark.parametrize("lengths", [[1.5], ["1"]])
def test_lengths_are_integers(lengths):
    with pytest.raises(TypeError):
        _SeqLenInfo.from_seqlens(lengths)
