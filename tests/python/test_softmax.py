"""softmax and log_softmax against fp64: masks, causal rows, gradients, edge cases and errors."""

import pytest
import torch
from blocks_reference import DTYPES, assert_close, random, wide
from devices import on_each_device  # noqa: F401
from xformers.triton import log_softmax, softmax

FUNCTIONS = {"softmax": (softmax, torch.softmax), "log_softmax": (log_softmax, torch.log_softmax)}
SHAPES = [(7, 1), (3, 33), (2, 64, 64), (2, 3, 5, 250), (1, 2, 1, 3, 2, 17), (2, 5000)]


@pytest.fixture(params=FUNCTIONS)
def functions(request):
    return FUNCTIONS[request.param]


def hidden(shape):
    """Where causal rows don't look."""
    return torch.ones(shape[-2:], dtype=torch.bool).triu(1).expand(shape)


def close(result, expected, terms):
    """Terms: the size of what was subtracted from each other. Infinities must stand in the same places."""
    finite = expected.isfinite()
    assert torch.equal(result.isfinite(), finite)
    assert torch.equal(result[~finite].double(), expected[~finite].double())
    terms = terms[finite] if isinstance(terms, torch.Tensor) and terms.dim() else terms
    assert_close(result[finite], expected[finite], scale=terms, roundings=1.01)


def check(functions, x, mask=None, causal=False):
    """Values and gradients of one call."""
    ours, plain = functions
    double = [wide(t) for t in (x, mask) if t is not None]
    scores = sum(double)
    if causal:
        scores = scores.masked_fill(hidden(scores.shape), -torch.inf)
    out, expected = ours(x, mask, causal), plain(scores, -1)
    assert out.dtype == x.dtype and out.shape == x.shape and out.is_contiguous()
    # Scores and their differences (up to 12 here) round before they become powers; 16-bit results round more than that.
    exact = x.dtype in (torch.float32, torch.float64)
    terms = expected.detach() if plain is torch.softmax else torch.ones_like(expected.detach())
    close(out, expected.detach(), terms if exact else 0.01 * terms)
    grad = random(x.shape, x.dtype, 7)
    if causal:
        grad = grad.masked_fill(hidden(x.shape), 0)
    inputs = [t for t in (x, mask) if t is not None and t.requires_grad]
    results = torch.autograd.grad(out, inputs, grad)
    others = torch.autograd.grad(expected, [t for t in double if t.requires_grad], grad.double())
    rows = x.numel() / x.shape[-1]
    for result, other, of in zip(results, others, inputs, strict=True):
        # From the rounded result: a row's sum carries as many roundings as the gradient has terms.
        terms = grad.double().abs().sum(-1).max() if plain is torch.log_softmax else 8 * grad.double().abs().max()
        assert result.dtype == of.dtype
        close(result, other, terms * (1 if of is x else rows))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(functions, dtype, shape):
    check(functions, random(shape, dtype, 0, True))


@pytest.mark.parametrize("shape", [(5, 5), (2, 40, 33), (2, 3, 20, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_causal(functions, dtype, shape):
    check(functions, random(shape, dtype, 0, True), causal=True)


@pytest.mark.parametrize("width", [5001, 20000, 130000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows(functions, dtype, width):
    """Longer than what a block of a GPU holds in registers, the last one than what it holds in shared memory."""
    x = random((3, width), dtype, 0, True)
    check(functions, x)
    check(functions, x, random((width,), dtype, 1))
    check(functions, x, causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "mask_shape",
    [(6, 33), (33,), (1,), (6, 1), (2, 1, 1, 33), (3, 1, 33), (2, 1, 6, 33), (1, 3, 6, 33), (2, 3, 6, 33)],
)
def test_masks_of_any_rank(functions, mask_shape, causal):
    check(functions, random((2, 3, 6, 33), requires_grad=True), random(mask_shape, seed=1, requires_grad=True), causal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_with_infinities(functions, dtype):
    mask = torch.zeros(20, 20, dtype=dtype).masked_fill(hidden((20, 20)), -torch.inf)
    x = random((2, 3, 20, 20), dtype, 0, True)
    check(functions, x, mask)
    assert torch.equal(functions[0](x, mask), functions[0](x, causal=True))


def test_masks_of_any_strides(functions):
    x = random((2, 3, 4, 6))
    for mask in (
        random((6, 4), seed=1).t(),
        random((2, 3, 1, 6), seed=1).transpose(0, 1).reshape(3, 2, 1, 6).transpose(0, 1),
        random((2, 4, 12), seed=1)[:, None, :, ::2],
        random((1, 3, 2, 4, 6), seed=1).transpose(1, 2)[0],
    ):
        assert torch.equal(functions[0](x, mask), functions[0](x, mask.expand(x.shape).contiguous()))
    other = random((4, 3, 2, 6), seed=2).transpose(0, 2)
    assert torch.equal(functions[0](other), functions[0](other.contiguous()))


def test_row_of_nothing_is_nan(functions):
    x = random((4, 9))
    x[1] = -torch.inf
    out, expected = functions[0](x), functions[1](x.double(), -1)
    assert bool(out[1].isnan().all()) and torch.equal(out.isnan(), expected.isnan())
    mask = torch.zeros(9, 9)
    mask[3, :4] = -torch.inf
    both = functions[0](random((9, 9)), mask, causal=True)
    assert bool(both[3].isnan().all()) and not bool(both[[0, 1, 2, 4, 8]].isnan().any())


def test_nan_and_infinity_spread_over_their_row(functions):
    x = random((3, 70))
    x[0, 5], x[1, 69] = torch.nan, torch.inf
    assert functions[0](x).isnan().all(-1).tolist() == [True, True, False]


def test_hidden_columns_are_not_read(functions):
    x = random((2, 50, 50))
    spoiled = x.masked_fill(hidden(x.shape), torch.nan)
    assert torch.equal(functions[0](x, causal=True), functions[0](spoiled, causal=True))


def test_hidden_columns_have_no_gradient(functions):
    x, grad = random((8, 8), requires_grad=True), random((8, 8), seed=1)
    (dx,) = torch.autograd.grad(functions[0](x, causal=True), x, grad)
    (other,) = torch.autograd.grad(functions[0](x, causal=True), x, grad.masked_fill(hidden((8, 8)), 5))
    assert torch.equal(dx, other) and not bool(dx[hidden((8, 8))].any())


def test_large_scores(functions):
    x = torch.tensor([[1e4, 1e4, -1e4], [88.0, 0.0, -88.0]])
    close(functions[0](x), functions[1](x.double(), -1), 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3)])
def test_empty(functions, shape):
    x = torch.empty(shape, requires_grad=True)
    out = functions[0](x, torch.zeros(shape[-1]))
    out.sum().backward()
    assert out.shape == x.grad.shape == shape


def test_gradcheck(functions):
    x, mask = random((2, 4, 5), torch.float64, 0, True), random((4, 5), torch.float64, 1, True)
    assert torch.autograd.gradcheck(functions[0], (x, mask))
    assert torch.autograd.gradcheck(lambda x: functions[0](x, causal=True)[:, :, 0], (x,))


def test_autocast_takes_masks_from_outside(functions, device):
    x, mask = random((4, 6), torch.bfloat16), random((6,), seed=1)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(functions[0](x, mask), functions[0](x, mask.bfloat16()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda: (torch.zeros(3, 4), torch.zeros(4, 4)), r"mask is \[4, 4\] fp32 .*, expected a shape that broadcasts"),
        (lambda: (torch.zeros(3, 4), torch.zeros(1, 3, 4)), "mask is"),
        (lambda: (torch.zeros(3, 4), torch.zeros(4).double()), "mask.dtype is fp64, expected fp32"),
        (lambda: (torch.zeros(3, 4), torch.zeros(4).bool()), "mask.dtype is Bool, expected fp32"),
        (lambda: (torch.zeros(3, 4, dtype=torch.int),), "x.dtype is int32"),
        (lambda: (torch.zeros(4), None, True), r"x is \[4\] .*, expected \[..., rows, columns\] where causal"),
        (lambda: (torch.tensor(1.0),), "x is"),
    ],
)
def test_bad_input(functions, arguments, message):
    with pytest.raises(ValueError, match=message):
        functions[0](*arguments())


def test_same_bits_for_any_threads(functions):
    x, threads, results = random((2, 300, 300)), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(functions[0](x, causal=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
