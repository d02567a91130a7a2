"""What the block operators should give, in fp64 and written as plainly as possible, and how close they must come."""

import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Relative error against fp64: 1e-6 in fp32, one rounding of the result (half a unit in the last place) in 16 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 1e-13}


def random(shape, dtype=torch.float32, seed=0, requires_grad=False):
    """The same numbers on every default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(torch.get_default_device(), dtype).requires_grad_(requires_grad)


def uniform(*shape, seed=0):
    """Numbers in [0, 1), the same on every default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(shape, generator=generator, device="cpu").to(torch.get_default_device())


def wide(tensor):
    """The same values in fp64, a leaf of its own."""
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def assert_close(result, expected, dtype=None, scale=None, roundings=1.0):
    """|result - expected| <= tolerance * (|expected| + scale); scale: the size of the terms that were added up."""
    dtype = dtype or result.dtype
    assert result.shape == expected.shape
    tolerance = TOLERANCE[dtype] * roundings
    scale = 0.0 if scale is None else scale
    smallest = 1e-30 if dtype != torch.float16 else 2.0**-24  # fp16's smallest number
    allowed = tolerance * (expected.detach().abs() + scale) + smallest
    error = (result.detach().double() - expected.detach()).abs()
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1, f"error is {worst:.3g} times the allowed one, {dtype}"
