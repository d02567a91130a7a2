"""rms_norm, rms_norm_add and layer_norm against fp64, their gradients and errors."""

import copy
import pickle

import pytest
import torch
from blocks_reference import DTYPES, assert_close, random, wide
from devices import on_each_device  # noqa: F401

from xformers.ops import RMSNorm, rms_norm, rms_norm_add

WIDTHS = [1, 7, 64, 273, 4096, 4100, 9000]
layer_norm = torch.ops.xformers.layer_norm


def plain_rms(x, weight, eps=1e-6):
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def gradients_close(inputs, double, rows, eps, centred):
    """dx is a difference of terms of the size of the gradient of the normalised row over the row's deviation; weights'
    gradients are sums over the rows."""
    x, others = inputs[0], inputs[1:]
    row = double[0].detach()
    row = row - row.mean(-1, keepdim=True) if centred else row
    terms = 4 / torch.sqrt((row * row).mean(-1, keepdim=True) + eps)
    assert_close(x.grad, double[0].grad, scale=terms)
    for weight, other in zip(others, double[1:], strict=True):
        assert_close(weight.grad, other.grad, scale=rows**0.5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("width", [2, 64, 273, 1024, 4096, 9000, 70000])
@pytest.mark.parametrize("magnitude", [1e-25, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_whose_squares_do_not_fit(dtype, magnitude, width, centred):
    """Against fp64. Every third row is of ordinary size: rows of one block may go different ways."""
    rows = 37
    x = random((rows, width), dtype, 0).detach()
    x[::3] = (x[::3].double() * magnitude / 3).to(dtype)
    x.requires_grad_()
    weight = random((width,), dtype, 1, True)
    double = [wide(x), wide(weight)]
    out = layer_norm(x, weight, eps=0.0) if centred else rms_norm(x, weight, 0.0)
    row = double[0] - double[0].mean(-1, keepdim=True) if centred else double[0]
    deviation = row.detach().square().mean(-1, keepdim=True).sqrt()
    expected = row / torch.sqrt((row * row).mean(-1, keepdim=True)) * double[1]
    assert_close(out, expected, scale=4)
    grad = random(out.shape, dtype, 2)
    out.backward(grad)
    expected.backward(grad.double())
    assert_close(x.grad.double() * deviation, double[0].grad * deviation, dtype, scale=32)
    assert_close(weight.grad, double[1].grad, scale=8 * rows**0.5)


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype, width, with_weight):
    rows = 37
    inputs = [random((rows, width), dtype, 0, True)] + ([random((width,), dtype, 1, True)] if with_weight else [])
    double = [wide(t) for t in inputs]
    out = rms_norm(inputs[0], inputs[1] if with_weight else None)
    expected = plain_rms(double[0], double[1] if with_weight else None)
    assert_close(out, expected, roundings=1.01)
    grad = random(out.shape, dtype, 2)
    out.backward(grad)
    expected.backward(grad.double())
    gradients_close(inputs, double, rows, 1e-6, centred=False)


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype, width, affine):
    rows, count = 37, {"both": 2, "weight": 1, "none": 0}[affine]
    inputs = [random((rows, width), dtype, 0, True)]
    inputs += [random((width,), dtype, i + 1, True) for i in range(count)]
    double = [wide(t) for t in inputs]
    out = layer_norm(*inputs, eps=1e-5)
    weights = [*double[1:], None, None][:2]
    expected = torch.nn.functional.layer_norm(double[0], (width,), *weights, eps=1e-5)
    assert_close(out, expected, scale=1.0 if dtype in (torch.float32, torch.float64) else 1e-2)
    grad = random(out.shape, dtype, 2)
    out.backward(grad)
    expected.backward(grad.double())
    gradients_close(inputs, double, rows, 1e-5, centred=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_rows_far_from_zero(dtype):
    x = (random((9, 512)) * 0.5 + 1000).to(dtype)
    expected = torch.nn.functional.layer_norm(x.double(), (512,), eps=1e-5)
    scale = 2e3 if dtype == torch.float32 else 1.0  # the deviations themselves are exact; the mean rounds
    assert_close(layer_norm(x, eps=1e-5), expected, scale=scale)


def test_layer_norm_of_rows_that_start_with_an_outlier():
    """Where the first element is a bad guess of the mean, forward and backward."""
    x = random((7, 900))
    x[:, 0] = torch.tensor([1e4, -1e4, 300.0, 20.0, 3.0, 0.0, -2.0])
    x[5, 1:] = 5.0
    x.requires_grad_()
    other, grad = wide(x), random((7, 900), seed=1)
    out, expected = layer_norm(x, eps=1e-5), torch.nn.functional.layer_norm(other, (900,), eps=1e-5)
    assert_close(out, expected, scale=1.0)
    out.backward(grad)
    expected.backward(grad.double())
    assert_close(x.grad, other.grad, scale=8.0)


def test_layer_norm_takes_any_strides():
    x = random((4, 6, 10)).transpose(0, 2)
    assert_close(layer_norm(x, eps=1e-5), torch.nn.functional.layer_norm(x.double(), (4,), eps=1e-5), scale=1.0)


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_add(dtype, width, with_weight):
    start, y = random((5, 8, width), dtype, 0, True), random((5, 8, width), dtype, 1, True)
    weight = random((width,), dtype, 2, True) if with_weight else None
    x = start.clone()
    out = rms_norm_add(x, y, weight)
    assert torch.equal(x, start.detach() + y.detach())  # one rounding
    unrounded = start.detach().double() + y.detach().double()
    norm = torch.sqrt((unrounded * unrounded).mean(-1, keepdim=True) + 1e-6)
    expected = x.detach().double() / norm * (1 if weight is None else weight.detach().double())
    assert_close(out, expected, roundings=1.01)

    # gradients, through both results, against the rounded sum's norm
    other = [wide(t) for t in (start, y)] + ([wide(weight)] if with_weight else [])
    total = other[0] + other[1]
    total.data.copy_(x.detach().double())
    plain = plain_rms(total, other[2] if with_weight else None)
    grads = random(out.shape, dtype, 3), random(out.shape, dtype, 4)
    torch.autograd.backward([out, x], list(grads))
    torch.autograd.backward([plain, total], [g.double() for g in grads])
    assert torch.equal(start.grad, y.grad)
    largest = other[0].grad.abs().max().item()
    assert_close(start.grad, other[0].grad, scale=largest, roundings=2.0)  # two gradients, added in the dtype
    if with_weight:
        assert_close(weight.grad, other[2].grad, scale=40**0.5, roundings=2.0)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_the_result_is_that_of_x(weight_dtype):
    x, weight = random((3, 20), torch.bfloat16), random((20,), weight_dtype, 1, True)
    out = rms_norm(x, weight)
    assert out.dtype == torch.bfloat16
    assert_close(out, plain_rms(x.double(), weight.detach().double()), roundings=1.01)
    out.sum().backward()
    assert weight.grad.dtype == weight_dtype


def test_nothing():
    assert rms_norm(torch.empty(0, 5), torch.ones(5)).shape == (0, 5)
    assert rms_norm(torch.empty(4, 0), None).shape == (4, 0)
    x, weight = torch.empty(0, 5, requires_grad=True), torch.ones(5, requires_grad=True)
    rms_norm(x, weight).sum().backward()
    assert x.grad.shape == (0, 5) and torch.equal(weight.grad, torch.zeros(5))


def test_special_values():
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, float("nan"), 2.0], [1.0, float("inf"), 2.0]])
    out, expected = rms_norm(x, None), plain_rms(x, None)
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out[0], torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_rows_and_streams(dtype):
    """Results above the size from which stores go past the caches, with rows that start anywhere."""
    x = random((1100, 4099), torch.float32).to(dtype)
    assert_close(rms_norm(x, None), plain_rms(x.double(), None), roundings=1.01)
    wide_row = random((1, 3_000_001), torch.float32).to(dtype)
    assert_close(rms_norm(wide_row, None), plain_rms(wide_row.double(), None), roundings=1.01)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, w: rms_norm(x.t(), None), "x is [8, 4] fp32 cpu with strides [1, 8], expected a contiguous tensor"),
        (lambda x, w: rms_norm(x, torch.ones(16)[::2]), "weight is [8] fp32 cpu with strides [2]"),
        (lambda x, w: rms_norm(x, torch.ones(4)), "weight is [4] fp32 cpu, expected [8]"),
        (lambda x, w: rms_norm(x.int(), None), "x.dtype is int32"),
        (lambda x, w: rms_norm(torch.tensor(1.0), None), "at least one dimension"),
        (lambda x, w: rms_norm_add(x, torch.ones(2, 8), w), "y is [2, 8] fp32 cpu, expected [4, 8]"),
        (lambda x, w: rms_norm_add(x, torch.ones(4, 8).half(), w), "y.dtype is fp16, expected fp32"),
        (lambda x, w: rms_norm_add(x, torch.ones(8, 4).t(), w), "y is [4, 8] fp32 cpu with strides"),
        (lambda x, w: layer_norm(x, w, torch.ones(3)), "bias is [3] fp32 cpu, expected [8]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError) as error:
        call(torch.ones(4, 8), torch.ones(8))
    message = message.replace(" cpu", f" {torch.empty(0).device}")
    assert message in str(error.value) and "Fix:" in str(error.value)


def test_gradcheck():
    def add(x, y, weight):
        x = x * 1
        return rms_norm_add(x, y, weight, 1e-3), x

    x, y, weight = (random(s, torch.float64, i, True) for i, s in enumerate([(3, 5), (3, 5), (5,)]))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(add, (x, y, weight))
    assert torch.autograd.gradcheck(
        lambda a, b, c: layer_norm(a, b, c, 1e-3), (x, weight, y[0].detach().requires_grad_())
    )
    with pytest.raises(RuntimeError, match="leaf Variable"):
        rms_norm_add(x, y, weight)


def test_only_weights_require_grad():
    x, weight, bias = random((6, 9)), random((9,), seed=1, requires_grad=True), random((9,), seed=2, requires_grad=True)
    for inputs in ((x, weight.detach(), bias), (x, weight, bias.detach()), (x, None, bias)):
        leaves = [t for t in inputs if t is not None and t.requires_grad]
        double = [None if t is None else wide(t) for t in inputs]
        grads = torch.autograd.grad(layer_norm(*inputs, eps=1e-5).square().sum(), leaves)
        expected = torch.nn.functional.layer_norm(double[0], (9,), double[1], double[2], 1e-5).square().sum()
        others = torch.autograd.grad(expected, [t for t in double if t is not None and t.requires_grad])
        for grad, other in zip(grads, others, strict=True):
            assert_close(grad, other, scale=10.0)


def test_module():
    module = RMSNorm(12, eps=1e-5)
    assert list(module.state_dict()) == ["weight"] and torch.equal(module.weight, torch.ones(12))
    assert list(RMSNorm(12, include_weight=False).state_dict()) == []
    x, y = random((4, 12)), random((4, 12), seed=1)
    assert_close(module(x), plain_rms(x.double(), None, 1e-5))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    changed = x.clone()
    with torch.no_grad():
        out = module.increment_and_forward_(changed, y)
    assert torch.equal(changed, x + y) and torch.equal(out, module(x + y))
    bare = RMSNorm(12, include_weight=False)
    assert bare.weight is None and torch.equal(bare(x), rms_norm(x, None))


def test_same_bits_for_any_threads():
    x, weight, grad = random((900, 300), seed=0), random((300,), seed=1), random((900, 300), seed=2)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([rms_norm(x, weight), *torch.ops.xformers.layer_norm_backward(grad, x, weight)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("width", [20000, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows(dtype, width):
    """Wider than what a block of a GPU holds in registers."""
    rows = 5
    x, weight, bias = (random(s, dtype, i, True) for i, s in enumerate([(rows, width), (width,), (width,)]))
    grad = random((rows, width), dtype, 3)
    for inputs, norm, centred in (
        ((x, weight), lambda a, b: rms_norm(a, b, 1e-5), False),
        ((x, weight, bias), lambda a, b, c: layer_norm(a, b, c, eps=1e-5), True),
    ):
        double = [wide(t) for t in inputs]
        if centred:
            expected = torch.nn.functional.layer_norm(double[0], (width,), *double[1:], eps=1e-5)
        else:
            expected = plain_rms(double[0], double[1], 1e-5)
        out = norm(*inputs)
        assert_close(out, expected, scale=1.0 if dtype in (torch.float32, torch.float64) else 1e-2)
        out.backward(grad)
        expected.backward(grad.double())
        gradients_close(inputs, double, rows, 1e-5, centred)
        for t in inputs:
            t.grad = None
