"""Tensors of more than 2^31 elements, forward and backward, and how much memory a call takes beside its results."""

import pytest
import torch
from devices import needs_cuda

import xformers.ops as xops

pytestmark = needs_cuda
HEADS, DIM, FEW = 16, 128, 64
MANY = 2**31 // (HEADS * DIM) + 64


def needs_memory(gib):
    free, _ = torch.cuda.mem_get_info()
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if free + cached < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of GPU memory")


def exact(q, k, v, dout):
    """out, dq, dk, dv of one piece of the queries, in fp32."""
    q, k, v, dout = (x.detach().float().transpose(1, 2).requires_grad_() for x in (q, k, v, dout))
    out = (q @ k.transpose(-1, -2) / DIM**0.5).softmax(-1) @ v
    grads = torch.autograd.grad(out, (q, k, v), dout)
    return [x.detach().transpose(1, 2) for x in (out, *grads)]


def error(got, expected):
    return ((got.float() - expected).norm() / expected.norm()).item()


def random(length):
    return torch.randn(1, length, HEADS, DIM, device="cuda", dtype=torch.bfloat16)


def test_more_than_2_31_elements_of_queries():
    needs_memory(36)
    q, dout = random(MANY), random(MANY)
    k, v = random(FEW).requires_grad_(), random(FEW).requires_grad_()
    q.requires_grad_()
    assert q.numel() > 2**31
    out = xops.memory_efficient_attention(q, k, v)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in (k, v)]
    for rows in torch.arange(MANY, device="cuda").split(2**16):
        piece = slice(rows[0].item(), rows[-1].item() + 1)
        with torch.enable_grad():
            want_out, want_dq, *shares = exact(q[:, piece], k, v, dout[:, piece])
        assert error(out[:, piece], want_out) < 1e-2 and error(dq[:, piece], want_dq) < 2e-2
        for total, share in zip(sums, shares, strict=True):
            total += share
    assert error(dk, sums[0]) < 2e-2 and error(dv, sums[1]) < 2e-2


def test_more_than_2_31_elements_of_keys():
    needs_memory(36)
    k, v = random(MANY).requires_grad_(), random(MANY).requires_grad_()
    q, dout = random(FEW).requires_grad_(), random(FEW)
    out = xops.memory_efficient_attention(q, k, v)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    # With so many keys every weight is about 1 / MANY: two heads are enough, and their scores fit.
    for head in (0, HEADS - 1):
        piece = (slice(None), slice(None), slice(head, head + 1))
        want = exact(*(x[piece] for x in (q, k, v, dout)))
        for got, expected in zip((out, dq, dk, dv), want, strict=True):
            assert error(got[piece], expected) < 3e-2


@pytest.mark.parametrize("dtype, dim", [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 64)])
def test_memory_grows_with_the_rows_alone(dtype, dim):
    """Beside its results a call holds floats for each row, never a matrix of scores."""

    def extra(length):
        q, k, v = (torch.randn(2, length, 4, dim, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
        rows = 2 * 4 * length
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            out = xops.memory_efficient_attention(q, k, v)
        forward = torch.cuda.max_memory_allocated() - before - out.nbytes
        out = xops.memory_efficient_attention(q, k, v)
        dout = torch.ones_like(out)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grads = torch.autograd.grad(out, (q, k, v), dout)
        backward = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in grads)
        return forward / 4 / rows, backward / 4 / rows

    extra(256)  # loads code
    forward, backward = extra(8192)
    assert forward <= 2, f"forward holds {forward:.1f} floats per row"
    assert backward <= 2 * dim + 8, f"backward holds {backward:.1f} floats per row"
