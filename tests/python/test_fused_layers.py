"""The fused layers as modules: values, parameters, training and evaluation, copies, compilation, addresses."""

import copy
import importlib
import math
import pickle

import pytest
import torch
from blocks_reference import assert_close, random, wide
from devices import on_each_device  # noqa: F401
from test_fused_dropout import plain_activation
from xformers.components import Activation, RotaryEmbedding, build_activation
from xformers.components.feedforward import FusedMLP
from xformers.components.nvfuser import (
    NVFusedBiasActivationDropout,
    NVFusedBiasDropoutRes,
    NVFusedBiasDropoutResLayerNorm,
)
from xformers.triton import FusedDropoutBias, FusedLayerNorm, FusedLinear, layer_norm

functional = torch.nn.functional
ACTIVATIONS = [None, *Activation]


@pytest.mark.parametrize(
    "address",
    [
        "xformers.triton.FusedLayerNorm",
        "xformers.triton.FusedLinear",
        "xformers.triton.FusedDropoutBias",
        "xformers.triton.dropout.FusedDropoutBias",
        "xformers.triton.layer_norm.FusedLayerNorm",
        "xformers.triton.fused_linear_layer.FusedLinear",
        "xformers.triton.softmax.log_softmax",
        "xformers.components.Activation",
        "xformers.components.activations.build_activation",
        "xformers.components.feedforward.fused_mlp.FusedMLP",
        "xformers.components.positional_embedding.rotary.RotaryEmbedding",
    ],
)
def test_address(address):
    module, name = address.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).__name__ == name


@pytest.mark.parametrize("name", ["dropout", "layer_norm", "softmax", "log_softmax"])
def test_functions_of_the_package(name):
    assert callable(getattr(importlib.import_module("xformers.triton"), name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nvfuser_gelu_is_the_exact_one(dtype):
    x, bias = torch.tensor([[-3.0, 0.5, 2.0]], dtype=dtype), torch.tensor([0.0, 0.25, -4.5])
    layer = NVFusedBiasActivationDropout(0.3, Activation.GeLU, 3).eval()
    with torch.no_grad():
        layer.bias.copy_(bias)
    z = x.double() + bias
    expected = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))  # -3.0 gives -0.00405, the tanh form -0.00364
    out = layer(x)
    assert out.dtype == dtype
    assert_close(out, expected, scale=1.5)  # z / 2 and z / 2 * erf(...) are added up
    x.requires_grad_()
    layer(x).sum().backward()
    slope = 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    assert_close(x.grad, slope, scale=2.0)


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_nvfuser_layers_keep_their_dtype_under_autocast(activation):
    x, residual = random((6, 32)), random((6, 32), seed=1)
    layer, adding = NVFusedBiasActivationDropout(0.3, activation, 32), NVFusedBiasDropoutRes(0.3, 32)
    with torch.autocast(x.device.type, torch.bfloat16):
        for given in (x, x.bfloat16()):
            assert layer(given).dtype == given.dtype
            assert torch.equal(layer.eval()(given), layer(given)) and layer.train()(given).dtype == given.dtype
        assert adding(x, residual).dtype == torch.float32
        assert adding(x.bfloat16(), residual).dtype == torch.float32  # promoted, as x + residual would be
    with torch.autocast(x.device.type, torch.bfloat16):
        under = layer.eval()(x)
    assert torch.equal(under, layer(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_linear(bias, activation):
    layer, x = FusedLinear(24, 40, bias=bias, activation=activation), random((3, 5, 24), requires_grad=True)
    assert (layer.bias is not None) == bias and layer.weight.shape == (40, 24)
    assert layer.weight.detach().abs().max() <= 1 / math.sqrt(24)
    parameters = list(layer.parameters())
    double = [wide(t) for t in (x, *parameters)]
    expected = plain_activation(activation and activation.value, functional.linear(*double))
    out = layer(x)
    assert_close(out, expected, scale=10.0)
    grad = random(out.shape, seed=1)
    results = torch.autograd.grad(out, (x, *parameters), grad)
    for result, other in zip(results, torch.autograd.grad(expected, double, grad.double()), strict=True):
        assert_close(result, other, scale=100.0)


def test_fused_linear_keeps_the_product_only_for_an_activation():
    x = random((6, 8))

    def saved(activation, train):
        sizes = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t),
            torch.set_grad_enabled(train),
        ):
            FusedLinear(8, 50, bias=True, activation=activation)(x)
        return (6, 50) in sizes

    assert saved("gelu", train=True) and not saved(None, train=True) and not saved("gelu", train=False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_dropout_bias(activation):
    layer, x = FusedDropoutBias(0.25, bias_shape=64, activation=activation), random((9, 64), requires_grad=True)
    assert list(layer.state_dict()) == ["bias"] and not bool(layer.bias.any())
    with torch.no_grad():
        layer.bias.copy_(random((64,), seed=1))
    plain = plain_activation(activation and activation.value, x.double() + layer.bias.double()).detach()
    assert_close(layer.eval()(x), plain, scale=4.0)
    torch.manual_seed(1)
    out = layer.train()(x)
    other = layer(x)
    torch.manual_seed(1)
    assert torch.equal(out, layer(x)) and not torch.equal(out, other)
    kept = out != plain_activation(None, torch.zeros_like(out))
    assert_close(torch.where(kept, out, 0.0), torch.where(kept, plain / 0.75, 0.0), scale=4.0)
    out.sum().backward()
    assert_close(layer.bias.grad, x.grad.double().sum(0), scale=10.0)
    layer.init_weights()
    assert not bool(layer.bias.any())


def test_fused_dropout_bias_refuses():
    for p in (1.0, -0.5, math.nan):
        with pytest.raises(AssertionError, match="expected a probability in"):
            FusedDropoutBias(p, None)
    with pytest.raises(ValueError, match="activation is 'tanh', expected None or one of"):
        FusedDropoutBias(0.1, None, "tanh")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_layer_norm(dtype, affine):
    layer, x = FusedLayerNorm(96, affine=affine).to(dtype), random((7, 96), dtype, 0, True)
    assert len(list(layer.parameters())) == (2 if affine else 0)
    eps = 1.6e-5 if dtype == torch.float16 else 1e-6
    expected = functional.layer_norm(x.detach().double(), (96,), eps=eps)
    assert_close(layer(x), expected, scale=1.0 if dtype == torch.float32 else 1e-2)
    layer(x).sum().backward()
    assert x.grad.dtype == dtype


def test_layer_norm_of_fp16_has_a_least_eps():
    x = (random((4, 32)) * 1e-3).half()
    for eps, used in ((1e-6, 1.6e-5), (1e-4, 1e-4)):
        assert_close(layer_norm(x, eps=eps), functional.layer_norm(x.double(), (32,), eps=used), scale=1e-2)


def test_layer_norm_is_fp32_under_autocast(device):
    layer, x = FusedLayerNorm(32), random((4, 32), torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_layer_norm_of_one_dimension_alone():
    with pytest.raises(ValueError, match="normalized_shape is"):
        FusedLayerNorm((4, 8))


@pytest.mark.parametrize("bias", [True, False])
def test_fused_mlp(bias):
    layer, x = FusedMLP(16, 0.0, Activation.SquaredReLU, 4, bias=bias), random((2, 5, 16), requires_grad=True)
    names = ["mlp.0.weight", "mlp.1.bias", "mlp.2.weight", "mlp.3.bias"]
    assert list(layer.state_dict()) == [n for n in names if bias or "weight" in n]  # one bias per layer
    state = {name: wide(value) for name, value in layer.state_dict().items()}
    double = wide(x)
    hidden = functional.linear(double, state["mlp.0.weight"], state.get("mlp.1.bias")).relu().square()
    expected = functional.linear(hidden, state["mlp.2.weight"], state.get("mlp.3.bias"))
    out = layer(x)
    assert_close(out, expected, scale=4.0)
    assert_close(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(expected.sum(), double)[0], scale=10.0)


def test_fused_mlp_drops_in_training_alone():
    layer, x = FusedMLP(16, 0.5, "gelu", 2), random((4, 16))
    assert not torch.equal(layer(x), layer(x))
    assert bool((layer(x) == 0).any())
    layer.eval()
    assert torch.equal(layer(x), layer(x)) and not bool((layer(x) == 0).any())


def test_nvfuser_layers():
    x, residual, bias = random((6, 32)), random((6, 32), seed=1), random((32,), seed=2)
    layers = {
        NVFusedBiasActivationDropout(0.3, Activation.ReLU, 32): lambda z: z.relu(),
        NVFusedBiasDropoutRes(0.3, 32): lambda z: z + residual,
        NVFusedBiasDropoutResLayerNorm(0.3, 32, 32): lambda z: functional.layer_norm(z + residual, (32,)),
        NVFusedBiasDropoutResLayerNorm(0.3, 32, 32, "pre"): lambda z: residual + functional.layer_norm(z, (32,)),
    }
    for layer, expected in layers.items():
        dropped = layer.dropout if isinstance(layer, NVFusedBiasDropoutResLayerNorm) else layer
        with torch.no_grad():
            dropped.bias.copy_(bias)
        arguments = (x,) if isinstance(layer, NVFusedBiasActivationDropout) else (x, residual)
        assert torch.allclose(layer.eval()(*arguments), expected(x + bias), atol=1e-5)
        assert not torch.equal(layer.train()(*arguments), layer(*arguments))
        assert layer.requires_residual == (len(arguments) == 2)
        with pytest.raises(AssertionError, match="expected a probability in"):
            type(layer)(1.0, *([32] if dropped is not layer else []))
    with pytest.raises(ValueError, match="layer_norm_style is 'mid'"):
        NVFusedBiasDropoutResLayerNorm(0.1, 32, layer_norm_style="mid")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_build_activation(activation):
    layer, x = build_activation(activation), random((3, 40))
    assert build_activation(activation and activation.value) is not None
    exact = functional.gelu(x.double()) if activation == "gelu" else plain_activation(activation, x.double())
    assert_close(layer(x), exact, scale=4.0)


def rotated(x):
    """The formula, in fp64."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rotary_embedding(dtype):
    layer = RotaryEmbedding(32)
    q, k = random((2, 4, 9, 32), dtype, 0, True), random((2, 4, 20, 32), dtype, 1, True)  # a shorter q
    out = layer(q, k)
    for result, x in zip(out, (q, k), strict=True):
        double = wide(x)
        expected = rotated(double)
        assert_close(result, expected, scale=2.0 if dtype in (torch.float32, torch.float64) else 1e-3, roundings=1.01)
        grad = random(x.shape, dtype, 3)
        (dx,) = torch.autograd.grad(result, x, grad)
        (other,) = torch.autograd.grad(expected, double, grad.double())
        assert_close(dx, other, scale=2.0 if dtype in (torch.float32, torch.float64) else 1e-3, roundings=1.01)


def test_rotary_embedding_state():
    layer = RotaryEmbedding(16)
    assert list(layer.state_dict()) == ["inv_freq"]
    layer.load_state_dict(layer.half().state_dict())
    with pytest.raises(ValueError, match="inv_freq of the state dict belongs to another base"):
        layer.load_state_dict({"inv_freq": 500000.0 ** (-torch.arange(0, 16, 2) / 16)})


def every_layer():
    x = random((3, 5, 16))
    return [
        (FusedLinear(16, 16, bias=True, activation="gelu"), (x,)),
        (FusedDropoutBias(0.0, 16, "smelu"), (x,)),
        (FusedLayerNorm(16), (x,)),
        (FusedMLP(16, 0.0, "star_relu", 2), (x,)),
        (RotaryEmbedding(16), (x, x)),
    ]


def test_copies_and_pickles():
    for layer, inputs in every_layer():
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert all(torch.equal(a, b) for a, b in zip(twin(*inputs), layer(*inputs), strict=True))
            assert repr(twin) == repr(layer)


@pytest.mark.parametrize("index", range(5))
def test_compiles(index):
    layer, inputs = every_layer()[index]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*inputs), layer(*inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_dropout_compiles():
    layer, x = FusedMLP(16, 0.5, "relu", 2), random((6, 16), requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x)
    grads = []
    for call in (compiled, layer):
        torch.manual_seed(4)
        grads.append(torch.autograd.grad(call(x).square().sum(), [x, *layer.parameters()]))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
