"""vLLM (V0): prompts through the forward function, grouped heads with stride 0, ALiBi per prompt."""

import torch
from client_check import assert_attends, randn
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LowerTriangularMaskWithTensorBias,
)

from xformers import ops as xops


def test_prompts():
    lengths = [5, 9]
    query = randn(14, 2, 3, 32, dtype=torch.bfloat16)
    key, value = (
        randn(14, 2, 32, dtype=torch.bfloat16, seed=seed)[:, :, None, :].expand(14, 2, 3, 32) for seed in (1, 2)
    )
    bias = BlockDiagonalCausalMask.from_seqlens(lengths)
    out = xops.memory_efficient_attention_forward(
        query[None], key[None], value[None], attn_bias=bias, p=0.0, scale=32**-0.5
    )
    assert out.view_as(query).shape == query.shape
    assert_attends(out, query[None], key[None], value[None], bias.materialize((14, 14)))


def test_sliding_window_and_encoder():
    query, key, value = (randn(1, 14, 2, 32, seed=seed) for seed in range(3))
    local = BlockDiagonalCausalMask.from_seqlens([5, 9]).make_local_attention(3)
    for bias in (local, BlockDiagonalMask.from_seqlens([5, 9], [4, 10])):
        out = xops.memory_efficient_attention_forward(query, key, value, attn_bias=bias, p=0.0, scale=0.1)
        assert_attends(out, query, key, value, bias.materialize((14, 14)), scale=0.1)


def test_alibi():
    """A bias per prompt, cut from a tensor padded to a multiple of 8, causal on top, heads grouped."""
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    for length in (5, 9):
        distance = (torch.arange(length)[None, :] - torch.arange(length)[:, None]).float()
        padded = torch.empty(1, 4, length, (length + 7) // 8 * 8)[..., :length]
        bias = padded.copy_(distance * slopes[:, None, None])
        grouped = bias.unflatten(1, (2, 2))
        query = randn(1, length, 2, 2, 32)
        key, value = (randn(1, length, 2, 1, 32, seed=seed).expand(-1, -1, -1, 2, -1) for seed in (1, 2))
        out = xops.memory_efficient_attention_forward(
            query, key, value, attn_bias=LowerTriangularMaskWithTensorBias(grouped), p=0.0, scale=0.2
        )
        causal = torch.full((length, length), -torch.inf).triu(1)
        assert_attends(out, query, key, value, grouped + causal, scale=0.2)
