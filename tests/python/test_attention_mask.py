"""AttentionMask, the wrapper of masks: how it is made, cut, combined and converted."""

import mechanisms_reference as reference
import pytest
import torch
from devices import on_each_device  # noqa: F401
from xformers.components.attention import AttentionMask

import xformers  # noqa: F401


def test_constructors():
    keep = torch.rand(3, 4) > 0.5
    mask = AttentionMask.from_bool(keep)
    assert mask.shape == (1, 3, 4) and (mask.seq_len, mask.to_seq_len, mask.ndim) == (3, 4, 3)
    assert torch.equal(mask.to_bool()[0], keep) and not mask.is_causal and mask.is_sparse is False
    assert torch.equal(AttentionMask.from_multiplicative(keep.int() * 3).values, mask.values)
    for wrong in (lambda: AttentionMask.from_bool(keep.int()), lambda: AttentionMask.from_multiplicative(keep)):
        with pytest.raises(AssertionError):
            wrong()
    with pytest.raises(AssertionError, match="expected a floating type"):
        AttentionMask(keep)
    with pytest.raises(AssertionError, match="requires a gradient"):
        AttentionMask(torch.zeros(3, 3, requires_grad=True))


def test_causal():
    mask = AttentionMask.make_causal(3, 5, dtype=torch.float64)
    assert mask.is_causal and mask.dtype == torch.float64
    assert torch.equal(mask.make_crop(2, 4).to_bool()[0].cpu(), reference.triangle(2, 4))
    assert mask._values is None and torch.equal(mask.to_bool()[0].cpu(), reference.triangle(3, 5))
    crop = mask.make_crop(2, 4)
    assert crop.is_causal and crop.values.untyped_storage().data_ptr() == mask.values.untyped_storage().data_ptr()


def test_arithmetic():
    causal, other = AttentionMask.make_causal(3), AttentionMask.from_bool(torch.eye(3).flip(0).bool())
    assert torch.equal((causal & other).to_bool(), causal.to_bool() & other.to_bool())
    assert (causal & other).is_causal
    both = causal + other
    assert not both.is_causal and torch.equal(both.values, causal.values + other.values)


def test_to():
    mask = AttentionMask.make_causal(3)
    assert mask.to(dtype=mask.dtype) is mask and mask.to(dtype=torch.float64).values.dtype == torch.float64
    with pytest.raises(AssertionError):
        mask.to()
