"""ComfyUI, Forge, generative-models: permuted views, masks expanded over batch and heads, the VAE, large batches."""

import pytest
import torch
from client_check import assert_attends, randn

import xformers
import xformers.ops


def test_permuted_views():
    q, k, v = (randn(2, 3, 20, 40, seed=seed).permute(0, 2, 1, 3) for seed in range(3))
    out = xformers.ops.memory_efficient_attention(q, k, v, attn_bias=None)
    assert_attends(out, q, k, v)


def test_mask_expanded_over_batch_and_heads():
    q, k, v = (randn(2, rows, 3, 40, seed=seed) for seed, rows in enumerate((20, 77, 77)))
    mask = torch.empty(20, 80)[:, :77].copy_(randn(20, 77, seed=4))[None, None].expand(2, 3, -1, -1)
    out = xformers.ops.memory_efficient_attention(q, k, v, attn_bias=mask)
    assert_attends(out, q, k, v, mask)


def test_vae():
    """One head of 512 over all pixels, here 48 x 48."""
    rows = 48 * 48
    q, k, v = (randn(1, 512, rows, dtype=torch.bfloat16, seed=seed).transpose(1, 2).contiguous() for seed in range(3))
    out = xformers.ops.memory_efficient_attention(q, k, v, attn_bias=None)
    some = torch.arange(0, rows, 97)
    scores = (q[0, some].double() @ k[0].double().T) * 512**-0.5
    expected = scores.softmax(-1) @ v[0].double()
    torch.testing.assert_close(out[0, some].double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("layout", ["batch", "batch x heads"])
def test_more_than_65535_rows_of_batch_and_heads(layout):
    shape = (70000, 2, 8) if layout == "batch" else (14000, 2, 5, 8)
    q, k, v = (randn(*shape, seed=seed) for seed in range(3))
    assert_attends(xformers.ops.memory_efficient_attention(q, k, v), q, k, v)
