"""dropout(activation(x + bias)) + residual against fp64 and the documented stream: gradients, chance, errors."""

import pytest
import torch
from blocks_reference import DTYPES, assert_close, random, wide
from devices import on_each_device  # noqa: F401
from dropout_stream import kept_elements
from xformers.components import Activation
from xformers.triton import dropout

bias_act_dropout = torch.ops.xformers.bias_act_dropout
ACTIVATIONS = [None, *Activation]
STATE = torch.tensor([0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321])


def plain_activation(name, z):
    """As the specification writes them; slopes at kinks are those of the upper side."""
    positive = torch.where(z < 0, 0, z)  # NaN stays
    return {
        None: lambda: z,
        "relu": lambda: positive,
        "leaky_relu": lambda: torch.where(z >= 0, z, 0.01 * z),
        "gelu": lambda: torch.nn.functional.gelu(z, approximate="tanh"),
        "squared_relu": lambda: positive * positive,
        "smelu": lambda: torch.where(z >= 2, z, torch.where(z < -2, 0, (z + 2) ** 2 / 8)),
        "star_relu": lambda: 0.8944 * positive * positive - 0.4472,
    }[name]()


def expected(x, bias, residual, name, p, kept):
    z = plain_activation(name, x if bias is None else x + bias)
    if p > 0:
        z = torch.where(kept, z * (1 / (1 - p) if p < 1 else 0), 0)
    return z if residual is None else z + residual


@pytest.mark.parametrize("width", [270, 272])  # rows that are aligned to two elements, and to sixteen bytes
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(dtype, activation, p, width):
    shape = (3, 11, width)
    x, bias, residual = (random(s, dtype, i, True) for i, s in enumerate([shape, shape[-1:], shape]))
    with torch.no_grad():  # kinks too
        x[0, 0, :3], bias[:3] = torch.tensor([0.0, 2.0, -2.0]), 0
    double = [wide(t) for t in (x, bias, residual)]
    kept = kept_elements(33, width, p, STATE.tolist()).reshape(shape).to(x.device) if 0 < p < 1 else p == 0
    name = activation and activation.value
    out = bias_act_dropout(x, bias, residual, name, p, STATE)
    other = expected(*double, name, p, torch.as_tensor(kept))
    assert out.dtype == dtype and out.shape == shape
    assert_close(out, other, scale=4.0 if dtype in (torch.float32, torch.float64) else 0.01, roundings=1.01)
    grad = random(shape, dtype, 5)
    results = torch.autograd.grad(out, (x, bias, residual), grad)
    others = torch.autograd.grad(other, double, grad.double())
    assert_close(results[0], others[0], scale=8.0 if dtype in (torch.float32, torch.float64) else 0.02, roundings=1.01)
    assert_close(results[1], others[1], scale=100.0 if dtype in (torch.float32, torch.float64) else 0.1, roundings=1.01)
    assert torch.equal(results[2], grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_from_zero(dtype, activation):
    far = torch.tensor([-1e4, -200.0, -50.0, -9.9, -9.0, 9.0, 50.0, 200.0, torch.inf, torch.nan], dtype=dtype)
    name = activation and activation.value
    out, other = bias_act_dropout(far[None], activation=name)[0], plain_activation(name, far.double())
    fits = other.abs() <= torch.finfo(dtype).max
    assert_close(out[fits], other[fits], scale=1e-3, roundings=1.01)
    assert torch.equal(out.isnan(), other.isnan()) and bool((out[~fits & ~other.isnan()] == torch.inf).all())


@pytest.mark.parametrize("width", [1, 7, 8, 9, 127, 128, 129, 1024, 1025, 5000])
def test_mask_of_any_width(width):
    x = torch.ones(5, width)
    kept = kept_elements(5, width, 0.5, STATE.tolist()).to(x.device)
    assert torch.equal(bias_act_dropout(x, p=0.5, philox_state=STATE) > 0, kept)


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.484375, 0.48440, 0.5, 0.9, 0.99999])  # around where draws become infinite
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mask_of_16_bit_types(dtype, p):
    """However many draws are compared at a time, in both directions."""
    rows, width = 37, 2056
    kept = kept_elements(rows, width, p, STATE.tolist()).to(torch.get_default_device())
    x = torch.full((rows, width), 2**-8, dtype=dtype)
    for residual in (None, torch.zeros_like(x)):
        assert torch.equal(bias_act_dropout(x, None, residual, None, p, STATE) > 0, kept)
    for activation in (None, "relu"):
        dx, _ = torch.ops.xformers.bias_act_dropout_backward(x, x, None, activation, p, STATE)
        assert torch.equal(dx > 0, kept)


def test_mask_does_not_depend_on_the_dtype():
    masks = [bias_act_dropout(torch.ones(9, 300, dtype=d), p=0.4, philox_state=STATE) > 0 for d in DTYPES]
    assert all(torch.equal(masks[0], other) for other in masks[1:])


@pytest.mark.parametrize("parts", [("bias",), ("residual",), ()])
@pytest.mark.parametrize("activation", [None, "smelu"])
def test_without_bias_or_residual(parts, activation):
    x = random((6, 40), requires_grad=True)
    bias = random((40,), seed=1) if "bias" in parts else None
    residual = random((6, 40), seed=2) if "residual" in parts else None
    kept = kept_elements(6, 40, 0.2, STATE.tolist()).to(x.device)
    out = bias_act_dropout(x, bias, residual, activation, 0.2, STATE)
    double = wide(x)
    other = expected(double, None if bias is None else bias.double(), residual, activation, 0.2, kept)
    assert_close(out, other, scale=4.0)
    grad = random((6, 40), seed=3)
    assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(other, double, grad.double())[0], scale=4.0)


def test_any_strides():
    x, residual = random((6, 5, 4)).transpose(0, 2), random((4, 5, 12), seed=1)[..., ::2]
    bias = random((12,), seed=2)[::2]
    out = bias_act_dropout(x, bias, residual, "relu", 0.5, STATE)
    assert torch.equal(
        out, bias_act_dropout(x.contiguous(), bias.contiguous(), residual.contiguous(), "relu", 0.5, STATE)
    )


def test_bias_counts_in_full():
    """A bias of another dtype is not rounded to x's."""
    x, bias = torch.zeros(2, 64, dtype=torch.bfloat16), (1 + random((64,)) * 1e-3).requires_grad_()
    out = bias_act_dropout(x, bias)
    assert torch.equal(out, bias.bfloat16().expand(2, 64))
    out.sum().backward()
    assert bias.grad.dtype == torch.float32 and bool((bias.grad == 2).all())


def test_repeats_from_the_seed_and_differs_between_calls():
    x = torch.ones(64, 2048)
    torch.manual_seed(5)
    one, two = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(one, dropout(x, 0.3)) and torch.equal(two, dropout(x, 0.3))
    assert not torch.equal(one, two)
    assert len({tuple(row) for row in (one > 0).tolist()}) == 64  # rows differ


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate(p):
    out = dropout(torch.ones(512, 1024), p)
    deviations = 5 * (p * (1 - p) / out.numel()) ** 0.5 + 2.0**-17
    assert abs((out == 0).double().mean().item() - p) < deviations
    assert abs((out == 0).double().mean(0) - p).max() < 6 * (p * (1 - p) / 512) ** 0.5
    assert abs((out == 0).double().mean(1) - p).max() < 6 * (p * (1 - p) / 1024) ** 0.5
    assert bool(((out == 0) | ((out - 1 / (1 - p)).abs() < 1e-4 / (1 - p))).all())


def test_dropping_nothing_and_everything():
    x, bias, residual = random((4, 33)), random((33,), seed=1), random((4, 33), seed=2)
    assert torch.equal(dropout(x, 0.0, bias, residual=residual), x + bias + residual)
    assert torch.equal(dropout(x, 1.0, bias, residual=residual), residual)
    spoiled = torch.full((4, 33), torch.nan)
    assert torch.equal(dropout(spoiled, 1.0), torch.zeros(4, 33))


def test_same_mask_in_backward():
    x, bias = random((50, 70), requires_grad=True), random((70,), seed=1, requires_grad=True)
    out = dropout(x, 0.5, bias)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out != 0, 2.0, 0.0))
    assert torch.equal(bias.grad, x.grad.sum(0))


def test_fused_dropout_operator():
    x, bias = random((50, 70)), random((70,), seed=1)
    torch.manual_seed(3)
    out = torch.ops.xformers.fused_dropout(x, 0.5, bias, "relu", x)
    torch.manual_seed(3)
    assert torch.equal(out, dropout(x, 0.5, bias, Activation.ReLU, residual=x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation):
    x, bias, residual = (random(s, torch.float64, i, True) for i, s in enumerate([(3, 5), (5,), (3, 5)]))
    name = activation and activation.value
    assert torch.autograd.gradcheck(lambda *t: bias_act_dropout(*t, name, 0.4, STATE), (x, bias, residual))


def test_what_is_kept_for_backward():
    """x with an activation; without one the random state alone."""

    def saved(activation):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            dropout(random((20, 30), requires_grad=True), 0.5, activation=activation)
        return sum(kept)

    assert saved(None) == 2 and saved("relu") == 602


def test_deterministic_sums():
    x, bias = random((3000, 257), requires_grad=True), random((257,), seed=1, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.autograd.grad(bias_act_dropout(x, bias, None, "gelu", 0.1, STATE).sum(), (x, bias)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_autocast(device):
    x, bias = random((4, 16), requires_grad=True), random((16,), seed=1, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        out = dropout(x, 0.0, bias, "relu")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, bias_act_dropout(x.detach().bfloat16(), bias.detach(), None, "relu"))
    out.sum().backward()
    assert x.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(shape):
    x, bias = torch.empty(shape, requires_grad=True), torch.ones(shape[-1], requires_grad=True)
    out = dropout(x, 0.5, bias, "gelu")
    out.sum().backward()
    assert out.shape == x.grad.shape == shape and torch.equal(bias.grad, torch.zeros(shape[-1]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: dropout(x, 1.5), "p is 1.5.*, expected a probability in"),
        (lambda x: dropout(x, -0.1), "p is -0.1.*, expected"),
        (lambda x: dropout(x, float("nan")), "p is nan"),
        (lambda x: dropout(x, 0.5, torch.zeros(3)), r"bias is \[3\] fp32 .*, expected \[4\]"),
        (lambda x: dropout(x, 0.5, residual=torch.zeros(4)), r"residual is \[4\] fp32 .*, expected \[3, 4\]"),
        (lambda x: dropout(x, 0.5, residual=x.double()), "residual.dtype is fp64, expected fp32"),
        (lambda x: dropout(x, 0.5, activation="tanh"), "activation is 'tanh', expected one of None, relu"),
        (lambda x: dropout(x.int(), 0.5), "x.dtype is int32"),
        (lambda x: dropout(x.sum(), 0.5), "x is"),
        (lambda x: bias_act_dropout(x, p=0.5), "philox_state is None, expected contiguous int64"),
        (lambda x: bias_act_dropout(x, p=0.5, philox_state=torch.zeros(2)), "philox_state is"),
        (
            lambda x: torch.ops.xformers.bias_act_dropout_backward(x, activation="relu"),
            "x is None, expected the input of the activation",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 4))
