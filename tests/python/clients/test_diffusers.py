"""diffusers: attention processors (3-D inputs) and the attention dispatcher (4-D and 5-D)."""

import pytest
import torch
from client_check import assert_attends, randn

import xformers.ops
from xformers.ops import fmha


@pytest.mark.parametrize("head_dim, rows", [(40, 64), (64, 77), (80, 16), (160, 16), (512, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_processor(head_dim, rows, dtype):
    """[batch * heads, rows, head_dim], text of 77 tokens, arguments by name; the VAE has one head of 512."""
    heads = 1 if head_dim == 512 else 2
    query = randn(2 * heads, rows, head_dim, dtype=dtype)
    key, value = (randn(2 * heads, 77, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    out = xformers.ops.memory_efficient_attention(query, key, value, attn_bias=None, op=None, scale=head_dim**-0.5)
    assert_attends(out, query, key, value)


def test_processor_with_a_mask():
    """A mask [batch * heads, rows, keys] expanded over its rows."""
    query = randn(4, 64, 40)
    key, value = (randn(4, 77, 40, seed=seed) for seed in (1, 2))
    mask = torch.zeros(4, 1, 77)
    mask[:, :, 50:] = -10000.0
    mask = mask.expand(-1, 64, -1)
    out = xformers.ops.memory_efficient_attention(query, key, value, attn_bias=mask, op=None, scale=40**-0.5)
    assert_attends(out, query, key, value, mask)


def test_the_check_of_set_use_memory_efficient_attention():
    """It tries the function on a tiny input, and reads the dtypes of the operator."""
    x = torch.randn((1, 2, 40))
    assert xformers.ops.memory_efficient_attention(x, x, x).shape == (1, 2, 40)
    op_fw, _ = xformers.ops.MemoryEfficientAttentionFlashAttentionOp
    assert torch.float16 in op_fw.SUPPORTED_DTYPES and torch.float32 not in op_fw.SUPPORTED_DTYPES


@pytest.mark.parametrize("kind", ["slice of a wider one", "expanded"])
def test_dispatcher(kind):
    """4-D and positional; the mask is a slice of a buffer padded to 8, or expanded over batch and heads."""
    query = randn(2, 30, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    key, value = (randn(2, 77, 4, 64, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    if kind == "expanded":
        mask = randn(1, 1, 1, 77, dtype=torch.bfloat16, seed=3).expand(2, 4, 30, 77)
    else:
        mask = randn(2, 4, 30, 80, dtype=torch.bfloat16, seed=3)[..., :77]
    out = xformers.ops.memory_efficient_attention(query, key, value, mask, 0.0, 0.2)
    assert_attends(out.detach(), query, key, value, mask, 0.2)
    out.sum().backward()
    assert query.grad.isfinite().all()


def test_dispatcher_with_grouped_heads():
    """Grouped-query attention: 5-D, key and value expanded with stride 0."""
    query = randn(1, 20, 8, 64).unflatten(2, (2, 4))
    key, value = (randn(1, 20, 2, 64, seed=seed)[:, :, :, None].expand(-1, -1, -1, 4, -1) for seed in (1, 2))
    out = xformers.ops.memory_efficient_attention(query, key, value, None, 0.0, None)
    assert_attends(out, query, key, value)
    assert out.flatten(2, 3).shape == (1, 20, 8, 64)


def test_causal():
    query, key, value = (randn(1, 20, 2, 64, seed=seed) for seed in range(3))
    bias = xformers.ops.LowerTriangularMask()
    out = xformers.ops.memory_efficient_attention(query, key, value, bias, 0.0, None)
    assert_attends(out, query, key, value, fmha.attn_bias.LowerTriangularMask().materialize((20, 20)))
