"""The devices that a test is parametrised with: `@pytest.mark.parametrize("device", DEVICES)`.

A file that imports `on_each_device` runs all of its tests on each, with new tensors there by default.

Tests of the GPU are collected everywhere and skipped, with the reason, where they can't run.
"""

import functools

import pytest
import torch

import xformers  # noqa: F401  (loads the operators)


def _why_no_cuda():
    if not torch.cuda.is_available():
        return "no GPU"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("xformers::attention_forward", "CUDA"):
        return "built without XFORMERS_CUDA"
    return ""


NO_CUDA = _why_no_cuda()
NO_SECOND_CUDA = NO_CUDA or ("one GPU alone" if torch.cuda.device_count() < 2 else "")
needs_cuda = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)
needs_two_cuda = pytest.mark.skipif(bool(NO_SECOND_CUDA), reason=NO_SECOND_CUDA)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def seed(value):
    """As torch.manual_seed, on the devices that are there: for each other that keeps the call, with its stack."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)


def on_cpu(function):
    """A reference, which makes its tensors on the CPU on whatever device the test runs."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


@pytest.fixture(autouse=True, params=DEVICES, name="device")
def on_each_device(request):
    if request.param == "cpu":
        yield request.param
    else:
        with torch.device(request.param):
            yield request.param
