"""DINOv2, Depth-Anything: attention over unbound qkv, and nested tensors as packed sequences."""

import torch
from client_check import assert_attends, randn

from xformers.ops import fmha, memory_efficient_attention, unbind


def test_attention_over_packed_qkv():
    qkv = randn(2, 17, 3, 4, 64, requires_grad=True)
    q, k, v = unbind(qkv, 2)
    out = memory_efficient_attention(q, k, v, attn_bias=None)
    assert_attends(out.detach(), q, k, v)
    out.reshape(2, 17, 256).square().sum().backward()
    separate = [x.detach().clone().requires_grad_() for x in qkv.unbind(2)]
    memory_efficient_attention(*separate).square().sum().backward()
    for got, x in zip(qkv.grad.unbind(2), separate, strict=True):
        torch.testing.assert_close(got, x.grad)


def test_nested_tensors():
    """Crops of two sizes share one call; `_batch_sizes` is set from outside and the bias kept in a cache."""
    crops = [randn(2, 10, 64, seed=1), randn(6, 4, 64, seed=2)]
    lengths = [x.shape[1] for x in crops for _ in range(x.shape[0])]
    bias = fmha.BlockDiagonalMask.from_seqlens(lengths)
    bias._batch_sizes = [x.shape[0] for x in crops]
    packed = torch.cat([x.reshape(1, -1, 64) for x in crops], 1)
    weight = randn(3 * 64, 64, seed=3) / 8
    q, k, v = unbind((packed @ weight.T).reshape(1, -1, 3, 2, 32), 2)
    out = memory_efficient_attention(q, k, v, attn_bias=bias)
    parts = bias.split(out)
    assert [part.shape for part in parts] == [(2, 10, 2, 32), (6, 4, 2, 32)]
    for x, part in zip(crops, parts, strict=True):
        assert_attends(part.contiguous(), *(x @ weight.T).reshape(*x.shape[:2], 3, 2, 32).unbind(2))


def test_from_tensor_list():
    tensors = [randn(2, 5, 64, seed=1), randn(1, 7, 64, seed=2)]
    bias, packed = fmha.BlockDiagonalMask.from_tensor_list(tensors)
    assert packed.shape == (1, 17, 64)
    assert all(torch.equal(a, b) for a, b in zip(bias.split(packed), tensors, strict=True))
