"""MLP, FusedMLP and Conv2DFeedforward against formulas in fp64; their parameters, copies, compilation and options."""

import copy
import io
import math
import pickle

import pytest
import torch
from blocks_reference import assert_close, random, wide
from devices import on_each_device  # noqa: F401
from test_fused_dropout import plain_activation
from xformers.components import Activation
from xformers.components.feedforward import (
    MLP,
    Conv2DFeedforward,
    FusedMLP,
    build_feedforward,
)

functional = torch.nn.functional
ACTIVATIONS = [None, *Activation]


def exact_gelu(z):
    return z * torch.erfc(-z / math.sqrt(2)) / 2


def activated(activation, z, tanh_form):
    if activation == "gelu" and not tanh_form:
        return exact_gelu(z)
    return plain_activation(activation, z)


def plain_mlp(layer, x, tanh_form):
    """The formula of section 3.3 of arXiv:1706.03762 with the parameters of either class, in fp64."""
    tensors = dict(layer.state_dict(keep_vars=True))
    fused = "mlp.2.weight" in tensors
    w1, w2 = (wide(tensors[name]) for name in ("mlp.0.weight", "mlp.2.weight" if fused else "mlp.3.weight"))
    b1, b2 = (tensors.get(name) for name in ("mlp.1.bias" if fused else "mlp.0.bias", "mlp.3.bias"))
    b1, b2 = (None if b is None else wide(b) for b in (b1, b2))
    x = wide(x)
    hidden = activated(layer.mlp[1].activation if fused else layer.activation, functional.linear(x, w1, b1), tanh_form)
    return functional.linear(hidden, w2, b2), (x, w1, b1, w2, b2)


def parameters_of(layer):
    fused = isinstance(layer, FusedMLP)
    bias = layer.mlp[1].bias if fused else layer.mlp[0].bias
    last = layer.mlp[2 if fused else 3]
    return layer.mlp[0].weight, bias, last.weight, layer.mlp[3].bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cls", [MLP, FusedMLP])
def test_values_and_gradients(cls, activation, bias):
    """Fused layers in MLP with and without bias (0.0.12); the bias flag (0.0.10)."""
    layer = cls(24, 0.0, activation, 3, bias=bias)
    if bias:
        with torch.no_grad():
            for vector in (b for b in parameters_of(layer) if b is not None and b.ndim == 1):
                vector.normal_()
    x = random((2, 5, 24), requires_grad=True)
    expected, leaves = plain_mlp(layer, x, tanh_form=cls is FusedMLP)
    out = layer(x)
    assert_close(out, expected, scale=20.0)
    assert_close(layer.eval()(x), expected, scale=20.0)
    grad = random(out.shape, seed=1)
    results = torch.autograd.grad(out, [x, *(p for p in parameters_of(layer) if p is not None)], grad)
    others = torch.autograd.grad(expected, [leaf for leaf in leaves if leaf is not None], grad.double())
    for result, other in zip(results, others, strict=True):
        assert_close(result, other, scale=100.0)


def test_exactly_two_biases_in_fused_mlp():
    """0.0.12: one bias per layer, and it equals MLP with the same weights."""
    fused, plain = FusedMLP(16, 0.0, "relu", 4), MLP(16, 0.0, "relu", 4)
    assert sorted(n for n, _ in fused.named_parameters() if "bias" in n) == ["mlp.1.bias", "mlp.3.bias"]
    plain.load_state_dict(fused.state_dict())
    x = random((3, 16))
    assert torch.equal(fused(x), plain(x))


@pytest.mark.parametrize("cls", [MLP, FusedMLP, Conv2DFeedforward])
def test_bias_flag(cls):
    """0.0.10."""
    layer = cls(dim_model=8, dropout=0.0, activation="relu", hidden_layer_multiplier=2, bias=False)
    assert all("bias" not in name for name, _ in layer.named_parameters())
    assert layer(random((1, 9, 8))).shape == (1, 9, 8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("source, target", [(MLP, FusedMLP), (FusedMLP, MLP), (MLP, MLP), (FusedMLP, FusedMLP)])
def test_either_state_dict_loads_into_either_class(source, target, bias):
    one, other = (torch.nn.Sequential(cls(8, 0.0, "relu", 2, bias=bias)) for cls in (source, target))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    state = one.state_dict()
    names = list(state)
    other.load_state_dict(state)
    assert list(state) == names  # the caller's dict stays as it is
    x = random((3, 8))
    assert torch.equal(one(x), other(x))
    with torch.device("meta"):
        empty = torch.nn.Sequential(target(8, 0.0, "relu", 2, bias=bias))
    empty.load_state_dict(state, assign=True)
    assert torch.equal(one(x), empty(x))


@pytest.mark.parametrize("cls", [MLP, FusedMLP])
def test_dropout(cls):
    torch.manual_seed(3)
    layer, x = cls(64, 0.25, "gelu", 4), random((50, 64), requires_grad=True)
    one, two = layer(x), layer(x)
    assert not torch.equal(one, two)
    assert 0.2 < (one == 0).float().mean().item() < 0.3  # of the last dropout
    assert torch.equal(layer.eval()(x), layer(x))
    layer.train()
    # Backward draws the masks again: the layer is linear in its last weight.
    torch.manual_seed(5)
    out = layer(x)
    last = parameters_of(layer)[2]
    (grad,) = torch.autograd.grad(out.sum(), last)
    torch.manual_seed(5)
    with torch.no_grad():
        last += 1.0
    torch.manual_seed(5)
    change = (layer(x).double() - out.double()).sum()
    assert abs(change - grad.double().sum()) <= 1e-3 * grad.double().abs().sum()


@pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "relu", None])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_mlp_gradcheck(device, activation, p):
    if activation == "gelu_exact" and device != "cpu":
        pytest.skip("composed of PyTorch's operators there")

    def layer(*tensors):
        torch.manual_seed(1)
        return torch.ops.xformers.mlp(*tensors, activation, p)

    shapes = ((3, 4), (6, 4), (6,), (5, 6), (5,))
    assert torch.autograd.gradcheck(layer, [random(s, torch.float64, i, True) for i, s in enumerate(shapes)])


def test_mlp_keeps_the_first_product_alone(device):
    """Of tensors of the hidden width. (GPUs have no kernel of the exact gelu: there the activation is kept too.)"""
    sizes = []
    layer, x = MLP(8, 0.1, "gelu" if device == "cpu" else "relu", 5), random((6, 8))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    assert sizes.count((6, 40)) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [MLP, FusedMLP, Conv2DFeedforward])
def test_autocast(cls, dtype, device):
    layer = cls(dim_model=32, dropout=0.0, activation="gelu", hidden_layer_multiplier=2)
    x = random((2, 16, 32), requires_grad=True)
    expected = layer(x)
    with torch.autocast(device, dtype):
        out = layer(x)
    assert out.dtype == dtype
    error = (out.float() - expected).abs().max().item()
    assert error <= 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("cls", [MLP, FusedMLP, Conv2DFeedforward])
def test_compile_fullgraph(cls):
    layer = cls(dim_model=16, dropout=0.0, activation="gelu", hidden_layer_multiplier=2)
    x = random((2, 9, 16), requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, out = layer(x), compiled(x)
    assert torch.allclose(out, expected, atol=1e-6)
    grads = [torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]) for y in (expected, out)]
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["MLP", "FusedMLP", "Conv2DFeedforward", "MixtureOfExperts"])
def test_built_by_name_pickled_and_copied(name):
    config = {"name": name, "dim_model": 16, "dropout": 0.1, "activation": "relu", "hidden_layer_multiplier": 2}
    if name == "MixtureOfExperts":
        config |= {"number_of_experts": 4, "gate": "top_2", "capacity_factor": None}
    before = dict(config)
    layer = build_feedforward(config).eval()
    assert config == before and type(layer).__name__ == name and layer.requires_cuda is False
    x = random((2, 4, 16))
    torch.manual_seed(0)
    out = layer(x)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(saved, weights_only=False)):
        torch.manual_seed(0)
        assert torch.equal(other(x), out)


def test_replaced_layers_run():
    layer = MLP(8, 0.0, "relu", 2)

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    x = random((3, 8))
    expected = layer.mlp[3](torch.relu(2 * layer.mlp[0](x)))
    layer.mlp[0] = Doubled(layer.mlp[0])
    assert torch.allclose(layer(x), expected, atol=1e-6)


def plain_conv_feedforward(layer, x):
    """Loops over the taps of the filters: weight[..., i, j] with i along the columns of the grid."""
    first, depth, _, last, _ = layer.conv_mlp
    side = math.isqrt(x.shape[1])
    x = wide(x)
    w0, b0, w1, b1, w3, b3 = leaves = [wide(p) for m in (first, depth, last) for p in (m.weight, m.bias)]
    hidden = (x @ w0[:, :, 0, 0].T + b0).view(x.shape[0], side, side, -1)
    padded = functional.pad(hidden, (0, 0, 1, 1, 1, 1))
    mixed = b1
    for i in range(3):
        for j in range(3):
            mixed = mixed + w1[:, 0, i, j] * padded[:, j : j + side, i : i + side]
    return exact_gelu(mixed).flatten(1, 2) @ w3[:, :, 0, 0].T + b3, [x, *leaves]


def test_conv2d_feedforward():
    """0.0.12."""
    layer, x = Conv2DFeedforward(6, hidden_layer_multiplier=2, dim_model_out=5), random((2, 16, 6), requires_grad=True)
    layer.init_weights()
    assert list(layer.state_dict()) == [f"conv_mlp.{i}.{n}" for i in (0, 1, 3) for n in ("weight", "bias")]
    expected, leaves = plain_conv_feedforward(layer, x)
    out = layer(x)
    assert out.shape == (2, 16, 5)
    assert_close(out, expected, scale=20.0)
    grad = random(out.shape, seed=1)
    results = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    for result, other in zip(results, torch.autograd.grad(expected, leaves, grad.double()), strict=True):
        assert_close(result, other, scale=200.0)
    assert layer.requires_squared_context
    with pytest.raises(AssertionError, match="number of tokens is 15, expected a square"):
        layer(random((2, 15, 6)))


def test_conv2d_feedforward_initialisation():
    torch.manual_seed(0)
    layer = Conv2DFeedforward(64, hidden_layer_multiplier=4)
    layer.init_weights()
    for convolution, fan_out in zip((layer.conv_mlp[i] for i in (0, 1, 3)), (256, 9, 64), strict=True):
        std = math.sqrt(2 / fan_out)
        assert abs(convolution.weight.std().item() / std - 1) < 0.1
        assert not bool(convolution.bias.any())


def test_bad_input():
    with pytest.raises(ValueError, match="activation is 'tanh', expected None or one of"):
        MLP(8, 0.0, "tanh", 2)
    with pytest.raises(ValueError, match=r"mlp: w1 is \[6, 4\] .*expected \[6, 5\]"):
        torch.ops.xformers.mlp(torch.ones(2, 5), torch.ones(6, 4), None, torch.ones(5, 6))
    with pytest.raises(ValueError, match="mlp: p is 2.0"):
        torch.ops.xformers.mlp(torch.ones(2, 4), torch.ones(6, 4), None, torch.ones(5, 6), None, None, 2.0)
