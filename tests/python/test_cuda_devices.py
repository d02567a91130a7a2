"""A GPU beside the CPU: the same numbers, no mixtures of the two, a failure of the one that the other survives."""

import subprocess
import sys
import textwrap

import pytest
import torch
from devices import needs_cuda

import xformers.ops as xops

pytestmark = needs_cuda


def inputs(device, dtype=torch.bfloat16, requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    qkv = (torch.randn(2, 70, 3, 64, generator=generator) for _ in range(3))
    return [x.to(device, dtype).requires_grad_(requires_grad) for x in qkv]


def attend(qkv):
    out = xops.memory_efficient_attention(*qkv, attn_bias=xops.LowerTriangularMask())
    return (out, *torch.autograd.grad(out, qkv, torch.ones_like(out)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cpu_and_gpu_agree(dtype):
    tolerance = dict(atol=2e-2, rtol=2e-2) if dtype == torch.bfloat16 else dict(atol=2e-5, rtol=1e-4)
    for got, expected in zip(attend(inputs("cuda", dtype)), attend(inputs("cpu", dtype)), strict=True):
        torch.testing.assert_close(got.cpu(), expected, **tolerance)


@pytest.mark.parametrize("which", range(3))
def test_a_tensor_on_the_cpu_is_refused(which):
    qkv = inputs("cuda", requires_grad=False)
    qkv[which] = qkv[which].cpu()
    with pytest.raises(ValueError, match="cpu"):
        xops.memory_efficient_attention(*qkv)


def test_a_bias_on_the_cpu_is_refused():
    qkv = inputs("cuda", requires_grad=False)
    with pytest.raises(ValueError, match="attn_bias.*cpu"):
        xops.memory_efficient_attention(*qkv, attn_bias=torch.zeros(2, 3, 70, 70, dtype=torch.bfloat16))


def test_a_failure_names_itself_and_leaves_the_cpu_working():
    """After a failed assertion of another kernel nothing runs on that GPU: the call says so, the process goes on."""
    program = """
        import torch
        import xformers.ops as xops

        q = torch.randn(1, 8, 1, 64, device="cuda", dtype=torch.bfloat16)
        xops.memory_efficient_attention(q, q, q)
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            pass
        try:
            xops.memory_efficient_attention(q, q, q)
        except RuntimeError as error:
            print("refused:", error)
        x = torch.randn(1, 8, 1, 64)
        print("cpu:", xops.memory_efficient_attention(x, x, x).isfinite().all().item(), flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert "refused:" in done.stdout and "assert" in done.stdout, done.stdout + done.stderr
    assert "cpu: True" in done.stdout
