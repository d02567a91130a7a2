"""mistral-inference: prefill with a sliding window, decoding over a rotating padded cache that nobody initialised."""

import pytest
import torch
from client_check import assert_attends, randn
from xformers.ops.fmha import memory_efficient_attention
from xformers.ops.fmha.attn_bias import (
    AttentionBias,
    BlockDiagonalCausalMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalMask,
)


@pytest.mark.parametrize("window", [3, 4096])
def test_first_prefill(window):
    """The window may be longer than every sequence."""
    lengths = [5, 9]
    mask = BlockDiagonalCausalMask.from_seqlens(lengths).make_local_attention(window)
    assert isinstance(mask, AttentionBias)
    q, k, v = (randn(1, 14, 4, 32, seed=seed) for seed in range(3))
    out = memory_efficient_attention(q, k, v, mask)
    i, j = torch.arange(14)[:, None], torch.arange(14)[None, :]
    hidden = ((i < 5) != (j < 5)) | (j > i) | (j <= i - window)
    assert_attends(out, q, k, v, torch.zeros(14, 14).masked_fill(hidden, -torch.inf))


def test_later_prefill():
    """Keys of the cache and of the new tokens, aligned at the end."""
    mask = BlockDiagonalMask.from_seqlens(q_seqlen=[2, 3], kv_seqlen=[6, 4]).make_local_attention_from_bottomright(4)
    q, k, v = (randn(1, rows, 4, 32, seed=seed) for seed, rows in enumerate((5, 10, 10)))
    out = memory_efficient_attention(q, k, v, mask)
    seen = torch.full((5, 10), -torch.inf)
    for i in range(5):
        first, local, nq, nk = (0, i, 2, 6) if i < 2 else (6, i - 2, 3, 4)
        last = local + nk - nq
        seen[i, first + max(0, last - 3) : first + last + 1] = 0
    assert_attends(out, q, k, v, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decoding(dtype):
    """One query a sequence, heads expanded, memory of the cache beyond a length is NaN."""
    lengths, size = [3, 8, 1], 8
    mask = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[1] * 3, kv_padding=size, kv_seqlen=torch.tensor(lengths).tolist()
    )
    query = randn(1, 3, 4, 32, dtype=dtype)
    cache_k, cache_v = (torch.full((3, size, 2, 32), torch.nan, dtype=dtype) for _ in range(2))
    for b, length in enumerate(lengths):
        for seed, cache in enumerate((cache_k, cache_v)):
            cache[b, :length] = randn(length, 2, 32, dtype=dtype, seed=10 * b + seed)
    key, value = (cache.flatten(0, 1)[None].repeat_interleave(2, dim=2) for cache in (cache_k, cache_v))
    out = memory_efficient_attention(query, key, value, mask)
    for b, length in enumerate(lengths):
        rows = slice(b * size, b * size + length)
        assert_attends(out[:, b : b + 1].contiguous(), query[:, b : b + 1], key[:, rows], value[:, rows])
