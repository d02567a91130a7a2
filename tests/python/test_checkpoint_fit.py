"""fit_to_memory: the peak is measured, and under what was asked for; the module is as before, but for its wrappers."""

import copy

import pytest
import torch
from torch import nn
from xformers.checkpoint import SelectiveCheckpointWrapper, fit_to_memory
from xformers.checkpoint._fit import _Step

from xformers.ops import RMSNorm, SwiGLU, fmha


class Block(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.norm1, self.norm2, self.feed_forward = RMSNorm(dim), RMSNorm(dim), SwiGLU(dim, 2 * dim)
        self.qkv, self.out, self.drop = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).unbind(-3)
        x = x + self.out(fmha.memory_efficient_attention(q, k, v, fmha.attn_bias.LowerTriangularMask()).flatten(-2))
        return x + self.drop(self.feed_forward(self.norm2(x)))


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(8, 32), *(Block() for _ in range(3))), torch.randn(2, 64, 8)
    return module, x, fit_to_memory(copy.deepcopy(module), ["1", "2", "3"], x, peak_bytes=1 << 40)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_peak_is_under_what_was_asked_for(setting, share):
    module, x, whole = setting
    module = copy.deepcopy(module)
    asked = int(whole.least_bytes + share * (whole.most_bytes - whole.least_bytes))
    before, state = torch.get_rng_state(), copy.deepcopy(module.state_dict())
    report = fit_to_memory(module, list(module)[1:], x, peak_bytes=asked)
    assert torch.equal(before, torch.get_rng_state()) and all(p.grad is None for p in module.parameters())
    assert module.state_dict().keys() == state.keys()
    assert all(isinstance(block, SelectiveCheckpointWrapper) for block in module[1:])
    assert report.least_bytes <= report.measured_bytes <= asked
    assert _Step(module, (x,), {}).peak() == report.measured_bytes
    if share >= 0.3:  # a good part of what may be kept is kept
        assert report.measured_bytes - report.least_bytes >= 0.5 * (asked - report.least_bytes)
    assert "MiB" in str(report) and "operators kept" in str(report)

    def gradients(module):
        torch.manual_seed(1)
        module.zero_grad()
        module(x).square().sum().backward()
        return [p.grad for p in module.parameters()]

    assert all(map(torch.equal, gradients(module), gradients(copy.deepcopy(setting[0]))))


def test_more_memory_never_means_more_recomputation(setting):
    module, x, whole = setting
    asked = [int(whole.least_bytes + s * (whole.most_bytes - whole.least_bytes)) for s in (0, 0.5, 1)]
    reports = [fit_to_memory(copy.deepcopy(module), ["1", "2", "3"], x, peak_bytes=bytes) for bytes in asked]
    assert reports[0].measured_bytes < reports[1].measured_bytes <= reports[2].measured_bytes
    assert reports[2].recomputed_seconds == 0 and all(report is None for report in reports[2].blocks.values())


def test_nothing_fits(setting):
    module, x, whole = setting
    module = copy.deepcopy(module)
    with pytest.raises(ValueError, match=f"expected at least {whole.least_bytes}: the least that a step takes"):
        fit_to_memory(module, ["1", "2", "3"], x, peak_bytes=whole.least_bytes - 1)
    assert not any(isinstance(m, SelectiveCheckpointWrapper) for m in module.modules())
    with pytest.raises(ValueError, match="the block ReLU is no submodule"):
        fit_to_memory(module, [nn.ReLU()], x, peak_bytes=1)


def test_the_peak_on_the_cpu_is_exact():
    module = nn.Linear(100, 50, bias=False)
    x = torch.randn(7, 100)
    # Weight, input, output, gradient of the output, gradient of the weight.
    assert _Step(module, (x,), {}).peak() == 4 * (100 * 50 + 7 * 100 + 2 * 7 * 50 + 100 * 50)
