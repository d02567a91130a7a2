"""Open-Sora: ring attention over the private halves, with structures built by hand."""

import torch
from client_check import randn

from xformers.ops import fmha, memory_efficient_attention


def test_halves_by_hand():
    """Every key block gives (out, context); they are merged by lse; each block's backward takes the total lse."""
    query, key, value = (randn(1, 12, 4, 32, seed=seed) for seed in range(3))
    parts, scale = [], 32**-0.5
    for rows in (slice(0, 7), slice(7, 12)):
        inp = fmha.Inputs(
            query, key[:, rows], value[:, rows], attn_bias=None, p=0.0, scale=scale, output_dtype=None, is_partial=False
        )
        op = fmha._dispatch_fw(inp, True) if hasattr(fmha, "_dispatch_fw") else None
        out, ctx = fmha._memory_efficient_attention_forward_requires_grad(inp, op=op)
        parts.append((out, ctx.lse[:, :, : query.shape[1]], inp))
    lse = torch.logsumexp(torch.stack([part[1] for part in parts]), 0)
    weights = [(part[1] - lse).exp().transpose(1, 2)[..., None] for part in parts]
    out = sum(part[0] * weight for part, weight in zip(parts, weights, strict=True))
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = memory_efficient_attention(*leaves)
    torch.testing.assert_close(out, expected)
    grad = randn(*out.shape, seed=5)
    wanted = torch.autograd.grad(expected, leaves, grad)
    dq, dk, dv = torch.zeros_like(query), [], []
    for _, _, inp in parts:
        ctx = fmha.Context(lse=lse, out=out, rng_state=None)
        grads = fmha._memory_efficient_attention_backward(ctx=ctx, inp=inp, grad=grad, op=None)
        dq += grads.dq
        dk.append(grads.dk)
        dv.append(grads.dv)
    for got, x in zip((dq, torch.cat(dk, 1), torch.cat(dv, 1)), wanted, strict=True):
        torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_padded_lse():
    """`Context.get_padded_lse` pads rows with +inf, and may force them."""
    lse = randn(1, 4, 12)
    ctx = fmha.Context(lse=lse, out=randn(1, 12, 4, 32))
    padded = ctx.get_padded_lse(32)
    assert padded.shape == (1, 4, 32) and torch.equal(padded[..., :12], lse) and (padded[..., 12:] == torch.inf).all()
    forced = fmha.Context(lse=lse.clone(), out=randn(1, 10, 4, 32)).get_padded_lse(4, force_pad_inf=True)
    assert (forced[..., 10:] == torch.inf).all() and torch.equal(forced[..., :10], lse[..., :10])
