"""PixArt: cross attention to prompts of different lengths, head_dim 72."""

from client_check import assert_attends, randn

import xformers.ops


def test_cross_attention():
    batch, rows, heads, lengths = 3, 16, 2, [7, 1, 12]
    query = randn(batch, rows, heads * 72, requires_grad=True)
    q = query.view(1, -1, heads, 72)
    kv = randn(1, sum(lengths), 2, heads, 72, seed=1, requires_grad=True)
    k, v = kv.unbind(2)
    bias = xformers.ops.fmha.BlockDiagonalMask.from_seqlens([rows] * batch, lengths)
    out = xformers.ops.memory_efficient_attention(q, k, v, p=0.0, attn_bias=bias)
    assert_attends(out.detach(), q, k, v, bias.materialize((batch * rows, sum(lengths))))
    out.view(batch, -1, heads * 72).sum().backward()
    assert query.grad.isfinite().all() and kv.grad.isfinite().all()


def test_self_attention_with_dropout():
    q, k, v = (randn(2, 16, 2, 72, seed=seed) for seed in range(3))
    out = xformers.ops.memory_efficient_attention(q, k, v, p=0.1, attn_bias=None)
    assert out.view(2, 16, 144).isfinite().all()
