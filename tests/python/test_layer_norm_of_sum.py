"""A residual addition and the layer norm behind it as one operator: values, gradients, and where modules use it."""

import copy

import pytest
import torch
from devices import DEVICES
from torch import nn
from xformers.components import PostNorm, Residual
from xformers.triton import FusedLayerNorm

of_sum, fused_of_sum = torch.ops.xformers.layer_norm_of_sum, torch.ops.xformers.fused_layer_norm_of_sum


def formula(x, residual, weight, bias, eps, scale):
    total = x + scale * residual
    centred = total - total.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias, total


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 33), (1, 1), (2, 0, 8), (70, 1024)])
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients(shape, dtype, scale, affine, device):
    torch.manual_seed(0)
    make = torch.Generator(device).manual_seed(0)
    kept = {"device": device, "dtype": dtype, "generator": make}
    x, residual = (torch.randn(shape, **kept).requires_grad_() for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (
        (torch.randn(shape[-1], device=device, dtype=wide, generator=make).requires_grad_() for _ in range(2))
        if affine
        else (None, None)
    )
    leaves = [t for t in (x, residual, weight, bias) if t is not None]
    out, total = of_sum(x, residual, weight, bias, 1e-5, scale)
    assert out.dtype == total.dtype == dtype and out.shape == total.shape == x.shape
    grads = [torch.randn(shape, **kept) for _ in range(2)]
    got = torch.autograd.grad([out, total], leaves, grads)

    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, residual, weight, bias)]
    # The norm is that of the rounded sum.
    expected, sum_of = formula(*exact, 1e-5, scale)
    rounded = sum_of + (total.double() - sum_of).detach()
    expected, _ = formula(rounded, torch.zeros_like(rounded), *exact[2:], 1e-5, 1)
    wanted = torch.autograd.grad([expected, sum_of], [t for t in exact if t is not None], [g.double() for g in grads])
    largest = float((rounded.var(-1, correction=0) + 1e-5).rsqrt().amax()) if rounded.numel() else 1
    unit = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13
    assert torch.allclose(total.double(), sum_of, rtol=2 * unit, atol=2 * unit)
    # Difference, scale and weight are rounded one by one, before the bias may cancel what they made.
    product = expected if bias is None else expected - exact[3]
    made = float(product.abs().amax()) if product.numel() else 0
    assert torch.allclose(out.double(), expected, rtol=4 * unit, atol=4 * unit * max(made, 2))
    for one, other in zip(got, wanted, strict=True):
        # What cancels in a gradient was multiplied by 1 / sqrt(var + eps).
        size = max(float(other.abs().amax()) if other.numel() else 0, largest)
        assert torch.allclose(one.double(), other, rtol=8 * unit, atol=16 * unit * size), (one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_is_the_two_operators(device):
    """Of rows that are stored past the cache too, and of transposed ones. The sum bit for bit; what weight and bias do
    may be rounded once or twice."""
    for shape in ((9, 33), (600, 8192)):
        x, residual = (torch.randn(shape, device=device) for _ in range(2))
        weight, bias = torch.randn(2, shape[-1], device=device)
        for a, b in ((x, residual), (x.t().contiguous().t(), residual)):
            out, total = of_sum(a, b, weight, bias, 1e-6)
            assert torch.equal(total, x + residual)
            apart = torch.ops.xformers.layer_norm(total, weight, bias, 1e-6)
            assert torch.allclose(out, apart, rtol=2e-7, atol=2e-7 * float((apart - bias).abs().amax()))


def test_rows_with_infinities_and_nan():
    x, residual = torch.randn(4, 16), torch.randn(4, 16)
    plain, _ = of_sum(x, residual)
    x[1, 3], residual[2, 5] = torch.inf, torch.nan
    out, _ = of_sum(x, residual)
    assert torch.equal(out[[0, 3]], plain[[0, 3]]) and out[1:3].isnan().all(1).all()


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_gradcheck(scale):
    inputs = [torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs += [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *t: of_sum(*t, 1e-5, scale), inputs)
    assert torch.autograd.gradcheck(lambda *t: of_sum(*t, 1e-5, scale)[0], inputs)


def test_opcheck():
    x, residual = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8)
    torch.library.opcheck(of_sum, (x, residual, torch.randn(8), None), {"scale": 2.0})


def test_other_shapes_and_dtypes_are_added_first():
    x, residual = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(8)
    out, total = fused_of_sum(x, residual, scale=0.5)
    assert total.dtype == torch.float32 and torch.equal(total, x + 0.5 * residual)
    assert torch.equal(out, torch.ops.xformers.fused_layer_norm(total))
    for bad, text in ((torch.randn(8), "residual"), (torch.randn(3, 8).half(), "residual")):
        with pytest.raises(ValueError, match=text):
            of_sum(torch.randn(3, 8), bad)


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scale", [None, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_post_norm_is_one_pass(scale, dtype):
    """As the layers one by one; apart where somebody looks at one of them, or the norm is another."""
    torch.manual_seed(0)
    path = PostNorm(16, Residual(nn.Linear(16, 16), scale), "layernorm").to(dtype)
    x = torch.randn(2, 7, 16, dtype=dtype)
    with Counted() as fused:
        path(inputs=[x])
    assert "xformers.layer_norm_of_sum.default" in fused.names and "aten.add.Tensor" not in fused.names

    hooked, seen = copy.deepcopy(path), []
    hooked.sublayer.register_forward_hook(lambda *_: seen.append(1))

    def results(module, inputs):
        leaf = inputs.detach().requires_grad_()
        out = module(inputs=[leaf])
        return [out, *torch.autograd.grad((out * out.detach()).sum(), [leaf, *module.parameters()])]

    got, apart, exact = results(path, x), results(hooked, x), results(copy.deepcopy(path).double(), x.double())
    assert seen and (scale is not None or all(map(torch.equal, got, apart)))
    for one, other, true in zip(got, apart, exact, strict=True):
        budget = 2 * (other - true).abs().amax() + 4 * torch.finfo(dtype).eps * true.abs().amax()
        assert (one - true).abs().amax() <= budget

    plain = PostNorm(16, Residual(nn.Linear(16, 16), scale), "layernorm", use_triton=False).to(dtype)
    with Counted() as other:
        plain(inputs=[x])
    assert "xformers.layer_norm_of_sum.default" not in other.names
    assert type(path.norm) is FusedLayerNorm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The norm is in fp32, as elsewhere; the residual path keeps its digits."""
    path = PostNorm(16, Residual(nn.Linear(16, 16)), "layernorm")
    x = torch.randn(2, 7, 16, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = path(inputs=[x])
        update = path.sublayer.layer(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, path.norm(x + update.float()))
    out.sum().backward()
