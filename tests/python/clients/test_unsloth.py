"""unsloth: packed training rows with a sliding window, grouped heads, and a bias whose offsets it moves itself."""

import torch
from client_check import assert_attends, randn
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

from xformers.ops import memory_efficient_attention


def test_packed_rows_with_a_window():
    mask = BlockDiagonalCausalMask.from_seqlens([6, 10]).make_local_attention(window_size=4)
    assert isinstance(mask, BlockDiagonalCausalMask)
    query = randn(1, 16, 2, 3, 32, requires_grad=True)
    key, value = (randn(1, 16, 2, 1, 32, seed=seed, requires_grad=True) for seed in (1, 2))
    out = memory_efficient_attention(
        query, key.expand(-1, -1, -1, 3, -1), value.expand(-1, -1, -1, 3, -1), attn_bias=mask
    )
    i, j = torch.arange(16)[:, None], torch.arange(16)[None, :]
    hidden = ((i < 6) != (j < 6)) | (j > i) | (j <= i - 4)
    seen = torch.zeros(16, 16).masked_fill(hidden, -torch.inf)
    assert_attends(out.detach(), query, key.expand(-1, -1, -1, 3, -1), value.expand(-1, -1, -1, 3, -1), seen)
    out.sum().backward()
    assert key.grad.shape == (1, 16, 2, 1, 32)


def test_offsets_are_moved_by_hand():
    mask = BlockDiagonalCausalMask.from_seqlens([6, 10])
    for info in (mask.q_seqinfo, mask.k_seqinfo):
        info.seqstart = info.seqstart.to("cpu", non_blocking=True)
    x = randn(1, 16, 2, 32)
    assert_attends(memory_efficient_attention(x, x, x, mask), x, x, x, mask.materialize((16, 16)))
