"""Which device and stream a call runs on: that of its tensors, whatever is current."""

import pytest
import torch
from devices import needs_cuda, needs_two_cuda

import xformers.ops as xops
from xformers.ops import fmha


def results(device, p=0.0):
    """Everything that a step of attention returns."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(2, 90, 3, 64, generator=generator).to(device, torch.bfloat16).requires_grad_() for _ in range(3)
    )
    torch.cuda.manual_seed_all(5)
    out = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask(), p=p)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    parts = [fmha.memory_efficient_attention_partial(q, k[:, i : i + 30], v[:, i : i + 30]) for i in (0, 30, 60)]
    merged, lse = fmha.merge_attentions([o for o, _ in parts], [s for _, s in parts])
    one_query = xops.memory_efficient_attention(q[:, :1], k, v)
    return [out, *grads, merged, lse, one_query]


@needs_two_cuda
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_second_device_while_the_first_is_current(p):
    with torch.cuda.device(0):
        expected, got = results("cuda:0", p), results("cuda:1", p)
    assert all(t.device == torch.device("cuda:1") for t in got)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.cpu(), e.cpu(), rtol=1e-2, atol=1e-2)


@needs_cuda
def test_two_streams_at_once():
    expected = results("cuda")
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(results("cuda"))
    torch.cuda.synchronize()
    for step in got:
        for g, e in zip(step, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-2, atol=1e-2)


@needs_cuda
def test_work_goes_to_the_current_stream():
    """A call on a side stream that waits behind a long copy must not run before it."""
    q, k, v = (torch.zeros(1, 64, 1, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    source = torch.ones_like(v)
    slow = torch.empty(1 << 28, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(10):
            slow.fill_(1)
        v.copy_(source)
        out = xops.memory_efficient_attention(q, k, v)
        merged, _ = fmha.merge_attentions([out], [torch.zeros(1, 1, 64, device="cuda")])
    stream.synchronize()
    assert (out == 1).all() and (merged == 1).all()


@needs_cuda
def test_tensors_of_two_devices_are_refused():
    q = torch.zeros(1, 4, 1, 64, device="cuda")
    with pytest.raises(ValueError, match="key.device is cpu, expected cuda:0 like the query's"):
        xops.memory_efficient_attention(q, q.cpu(), q)
    with pytest.raises(ValueError, match=r"lse\[0\].device is cpu, expected cuda:0"):
        fmha.merge_attentions([q], [torch.zeros(1, 1, 4)])
