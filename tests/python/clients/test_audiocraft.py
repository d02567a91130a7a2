"""audiocraft: unbind of packed and of permuted tensors, causal or with a bias cut from a padded one, with dropout."""

import pytest
import torch
from client_check import assert_attends, randn

from xformers import ops


@pytest.mark.parametrize("layout", ["b t p h d", "b h p t d"])
def test_unbind(layout):
    projected = randn(2, 6, 3, 4, 16, requires_grad=True)
    packed = projected if layout == "b t p h d" else projected.permute(0, 3, 2, 1, 4)
    q, k, v = ops.unbind(packed, dim=2)
    out = ops.memory_efficient_attention(q, k, v)
    assert_attends(out.detach(), q, k, v)
    out.sum().backward()
    assert projected.grad.shape == projected.shape


def test_causal_with_dropout():
    q, k, v = (randn(2, 9, 4, 16, seed=seed) for seed in range(3))
    out = ops.memory_efficient_attention(q, k, v, ops.LowerTriangularMask(), p=0)
    seen = torch.zeros(9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    assert_attends(out, q, k, v, seen)
    dropped = ops.memory_efficient_attention(q, k, v, ops.LowerTriangularMask(), p=0.5)
    assert dropped.isfinite().all() and not torch.equal(out, dropped)


@pytest.mark.parametrize("steps, past", [(5, 2), (8, 0), (1, 10)])
def test_mask_from_a_padded_tensor(steps, past):
    """A streaming mask: padded to a multiple of 8, sliced, expanded, -inf where hidden."""
    keys = steps + past
    i, j = torch.arange(past, keys)[:, None], torch.arange(keys)[None, :]
    hidden = (j > i) | (j < i - 6)
    padded = torch.zeros(steps, (keys + 7) // 8 * 8)
    padded[:, :keys].masked_fill_(hidden, -torch.inf)
    mask = padded[None, None].expand(2, 4, -1, -1)[..., :keys]
    q, k, v = (randn(2, rows, 4, 16, seed=seed) for seed, rows in enumerate((steps, keys, keys)))
    assert_attends(ops.memory_efficient_attention(q, k, v, mask, p=0), q, k, v, mask)
