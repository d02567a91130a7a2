"""Block operators on a GPU alone: sizes beyond 32 bits, repeatable bits, indices that nobody checks."""

import pytest
import torch
from blocks_reference import assert_close, random, wide
from devices import NO_CUDA
from test_indexing import plain_add
from test_rmsnorm import plain_rms

from xformers.ops import index_select_cat, rms_norm, rms_norm_add, scaled_index_add

pytestmark = pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)


def test_rms_norm_of_more_than_two_to_the_31_elements():
    with torch.device("cuda"):
        x, weight = torch.randn(2**19 + 3, 4104, dtype=torch.bfloat16), torch.randn(4104, dtype=torch.bfloat16)
        out = rms_norm(x, weight)
        dx, dweight = torch.ops.xformers.rms_norm_backward(x, x, weight)
        for begin in (0, 2**18 + 5, 2**19 - 2):  # around and behind 2^31 elements
            rows = slice(begin, begin + 5)
            part = wide(x[rows]).requires_grad_()
            expected = plain_rms(part, weight.double())
            assert_close(out[rows], expected, roundings=1.01)
            expected.backward(x[rows].double())
            assert_close(dx[rows], part.grad, scale=4.0)
        del dx
        assert dweight.isfinite().all()
        y = torch.ones_like(out)
        before = x[-3:].double()
        rms_norm_add(x, y, weight)
        assert torch.equal(x[-3:], (before + 1).to(x.dtype))


@pytest.mark.parametrize("rows", [1, 31, 5000])
def test_layer_norm_gives_the_same_bits_again(rows):
    with torch.device("cuda"):
        x, grad = random((rows, 1536), torch.bfloat16, 0), random((rows, 1536), torch.bfloat16, 1)
        weight = random((1536,), torch.bfloat16, 2)
        first = torch.ops.xformers.layer_norm_backward(grad, x, weight)
        for _ in range(3):
            again = torch.ops.xformers.layer_norm_backward(grad, x, weight)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("width", [40, 1001, 1536, 4096, 12288])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("centred", [False, True])
def test_norm_gradients_of_more_rows_than_blocks(dtype, width, centred):
    """Every group of threads takes many rows, several of which are on their way at once."""
    rows = 40001 if width < 100 else 1201
    with torch.device("cuda"):
        torch.manual_seed(width)
        x, grad, weight = (torch.randn(shape, dtype=dtype) for shape in [(rows, width), (rows, width), (width,)])
        x[7] += 100  # the first element of a row is no help
        x[7, 0] = -1000
        double = [wide(t).requires_grad_() for t in (x, weight)]
        if centred:
            dx, dweight, dbias = torch.ops.xformers.layer_norm_backward(grad, x, weight, 1e-5)
            assert_close(dbias, grad.double().sum(0), scale=rows**0.5)
            expected = torch.nn.functional.layer_norm(double[0], (width,), double[1], None, 1e-5)
        else:
            dx, dweight = torch.ops.xformers.rms_norm_backward(grad, x, weight, 1e-5)
            expected = plain_rms(double[0], double[1], 1e-5)
        expected.backward(grad.double())
        deviation = (x.double() - centred * x.double().mean(-1, keepdim=True)).square().mean(-1, keepdim=True).sqrt()
        assert_close(dx, double[0].grad, scale=4 / deviation)
        assert_close(dweight, double[1].grad, scale=rows**0.5)


@pytest.mark.parametrize("count", [4, 1000])
def test_indices_out_of_range(count, monkeypatch):
    """Unchecked by default: nothing outside is read or written. XFORMERS_CHECK_INDICES=1: IndexError."""
    rows, width = 50, 24
    with torch.device("cuda"):
        index = torch.arange(count) % rows
        index[1], index[2], index[3] = rows, -1, 2**40
        guarded = random((3 * rows, width))
        x = guarded[rows : 2 * rows]
        out = index_select_cat([x], [index]).view(count, width)
        bad = (index < 0) | (index >= rows)
        assert bool(out[bad].isnan().all()) and torch.equal(out[~bad], x[index[~bad]])
        grad = random((count, width), seed=1)
        dx = torch.ops.xformers.index_select_cat_backward(grad.flatten(), [index], [rows], [width])[0]
        plain = torch.zeros(rows, width, dtype=torch.float64).index_add(0, index[~bad], grad[~bad].double())
        assert_close(dx, plain, scale=30.0)

        before = guarded.clone()
        source = random((count, 1, width), seed=2)
        scaled_index_add(x.view(rows, 1, width), index, source)
        assert torch.equal(guarded[:rows], before[:rows]) and torch.equal(guarded[2 * rows :], before[2 * rows :])
        expected = plain_add(before[rows : 2 * rows].double(), index[~bad], source[~bad].double().flatten(1), None, 1.0)
        assert_close(x, expected, scale=30.0)
        scaling = torch.ones(width)
        dsource, dscaling = torch.ops.xformers.scaled_index_add_backward(x.view(rows, 1, width), index, source, scaling)
        assert torch.equal(dsource[:, 0], torch.where(bad[:, None], 0.0, x[index.where(~bad, 0)]))
        assert_close(dscaling, (dsource.double() * source.double()).sum((0, 1)), scale=count**0.5 * 10)

        monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")
        message = rf"\[1\] is {rows}, expected 0 <= index < {rows}.  Fix:"
        with pytest.raises(IndexError, match=message):
            index_select_cat([x], [index])
        with pytest.raises(IndexError, match=message):
            scaled_index_add(x.view(rows, 1, width), index, source)


def test_rows_of_more_than_two_to_the_31_elements():
    with torch.device("cuda"):
        rows, width = 2**20 + 3, 2064
        x = torch.empty(rows, width, dtype=torch.bfloat16).normal_()
        index = torch.tensor([0, rows - 1, 2**19, rows - 2])
        assert torch.equal(index_select_cat([x], [index]), x[index].flatten())
        source = random((4, 1, width), torch.bfloat16)
        expected = plain_add(x[index].double(), torch.arange(4), source.double().flatten(1), None, 0.5)
        scaled_index_add(x.view(rows, 1, width), index, source, alpha=0.5)
        assert_close(x[index], expected, scale=1e-2)
        everything = torch.arange(rows)
        assert torch.equal(index_select_cat([x], [everything]), x.flatten())


def norm_calls():
    x, y = (torch.randn(30, 512, device="cuda", requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(512, device="cuda", requires_grad=True) for _ in range(2))

    def call():
        stream = x * 1
        added = rms_norm_add(stream, y, weight)
        result = torch.ops.xformers.layer_norm(rms_norm(stream, weight), weight, bias)
        return (added, result, *torch.autograd.grad((added + result).square().sum(), (x, y, weight, bias)))

    return [x, y, weight, bias], call


def softmax_calls():
    x, mask = torch.randn(3, 40, 64, device="cuda", requires_grad=True), torch.randn(40, 64, device="cuda")

    def call():
        out, log = torch.ops.xformers.softmax(x, mask), torch.ops.xformers.log_softmax(x, None, True)[..., :1]
        return (out, log, *torch.autograd.grad(out.square().sum() + log.square().sum(), x))

    return [x, mask], call


def index_calls(count):
    rows = 2 * count
    x, source = torch.randn(rows, 3, 16, device="cuda", requires_grad=True), torch.randn(count, 3, 16, device="cuda")
    scaling, index = torch.randn(16, device="cuda", requires_grad=True), torch.randperm(rows, device="cuda")[:count]
    source.requires_grad_()

    def call():
        out = scaled_index_add(x * 1, index, source, scaling, 0.3)
        cat = index_select_cat([out.flatten(1), x.flatten(1)], [index, index])
        return (out, cat, *torch.autograd.grad(out.square().sum() + cat.square().sum(), (x, source, scaling)))

    return [x, source, scaling], call


CALLS = {
    "norms": norm_calls,
    "softmax": softmax_calls,
    "few rows": lambda: index_calls(20),
    "many rows": lambda: index_calls(3000),
}


@pytest.mark.parametrize("name", CALLS)
def test_graphs_follow_their_inputs_and_nobody_waits(name):
    tensors, call = CALLS[name]()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = call()
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got, other in zip(captured, expected, strict=True):
        assert torch.equal(got, other)  # the same bits each time
