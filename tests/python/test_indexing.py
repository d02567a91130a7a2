"""index_select_cat and scaled_index_add against fp64, their gradients, strides and errors."""

import pytest
import torch
from blocks_reference import DTYPES, assert_close, random, wide
from devices import on_each_device  # noqa: F401

from xformers.ops import index_select_cat, scaled_index_add

SHAPES = [(5, 7), (64, 16), (3, 40000), (300, 1), (2000, 24)]


def indices_for(rows, count, seed=1, repeated=False):
    generator = torch.Generator("cpu").manual_seed(seed)
    if repeated:
        index = torch.randint(rows, (count,), generator=generator, device="cpu")
    else:
        index = torch.randperm(rows, generator=generator, device="cpu")[:count]
    return index.to(torch.get_default_device())


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_index_select_cat(dtype, repeated):
    sources = [random(shape, dtype, seed=i, requires_grad=True) for i, shape in enumerate(SHAPES)]
    indices = [indices_for(s.shape[0], s.shape[0] if i else 3, i, repeated) for i, s in enumerate(sources)]
    out = index_select_cat(sources, indices)
    expected = torch.cat([s[i].flatten() for s, i in zip(sources, indices, strict=True)])
    assert torch.equal(out, expected)

    grad = random(out.shape, dtype, seed=9)
    out.backward(grad)
    double = [wide(s) for s in sources]
    torch.cat([s[i].flatten() for s, i in zip(double, indices, strict=True)]).backward(grad.double())
    for source, other in zip(sources, double, strict=True):
        assert_close(source.grad, other.grad, scale=1.0 if repeated else None)


def test_index_select_cat_streams_large_results():
    source = random((1500, 2048), torch.float32)
    index = indices_for(1500, 1400)
    assert torch.equal(index_select_cat([source], [index]), source[index].flatten())


def test_index_select_cat_takes_views_and_nothing():
    wide_source = random((6, 20))
    views = [wide_source[:, 3:11], random((8, 5)).t(), random((4, 0)), random((0, 3))]
    indices = [torch.tensor([5, 0]), torch.tensor([4, 4]), torch.tensor([1]), torch.empty(0, dtype=torch.long)]
    expected = torch.cat([s[i].flatten() for s, i in zip(views, indices, strict=True)])
    assert torch.equal(index_select_cat(views, indices), expected)
    assert torch.equal(index_select_cat([views[0]], [torch.arange(10)[::5] // 2]), views[0][[0, 2]].flatten())


@pytest.mark.parametrize(
    "sources, indices, message",
    [
        ([], [], "sources is empty"),
        ([torch.zeros(3, 2)], [], "len(indices) is 0, expected 1"),
        ([torch.zeros(3)], [torch.tensor([0])], "sources[0] is [3] fp32 cpu, expected [rows, width]"),
        ([torch.zeros(3, 2)], [torch.tensor([[0]])], "indices[0] is [1, 1]"),
        ([torch.zeros(3, 2)], [torch.tensor([0], dtype=torch.int32)], "indices[0].dtype is int32, expected int64"),
        ([torch.zeros(3, 2)], [torch.tensor([1, 3])], "indices[0][1] is 3, expected 0 <= index < 3"),
        ([torch.zeros(3, 2)], [torch.tensor([-1])], "indices[0][0] is -1, expected 0 <= index < 3"),
        (
            [torch.zeros(3, 2), torch.zeros(3, 2).half()],
            [torch.tensor([1]), torch.tensor([1])],
            "sources[1].dtype is fp16, expected fp32",
        ),
    ],
)
def test_index_select_cat_errors(device, monkeypatch, sources, indices, message):
    if device == "cuda":
        monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")
    sources, indices = ([t.to(device) for t in tensors] for tensors in (sources, indices))
    message = message.replace(" cpu", f" {torch.empty(0).device}")
    with pytest.raises((ValueError, IndexError)) as error:
        index_select_cat(sources, indices)
    assert message in str(error.value) and "Fix:" in str(error.value)


def plain_add(x, index, source, scaling, alpha):
    factor = alpha if scaling is None else alpha * scaling
    return x.index_add(0, index, factor * source)


@pytest.mark.parametrize("with_scaling", [True, False])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("shape", [(6, 3, 7), (20, 1, 300), (3, 2, 40000), (50, 4, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_index_add(dtype, shape, repeated, with_scaling):
    rows, middle, width = shape
    count = max(1, int(rows * 0.6))
    x = random(shape, dtype, 0, True)
    source = random((count, middle, width), dtype, 1, True)
    scaling = random((width,), dtype, 2, True) if with_scaling else None
    index = indices_for(rows, count, repeated=repeated)
    leaves = [t for t in (x, source, scaling) if t is not None]
    double = [wide(t) for t in leaves]
    expected = plain_add(double[0], index, double[1], double[2] if with_scaling else None, 0.73)

    target = x.clone()
    out = scaled_index_add(target, index, source, scaling, 0.73)
    assert out is target
    assert_close(out, expected, scale=4.0 if dtype in (torch.float32, torch.float64) else 1e-2)

    grad = random(shape, dtype, 3)
    out.backward(grad)
    expected.backward(grad.double())
    assert torch.equal(x.grad, grad)
    assert_close(source.grad, double[1].grad, roundings=1.01)
    if with_scaling:
        assert_close(scaling.grad, double[2].grad, scale=(count * middle) ** 0.5)


def test_scaled_index_add_strides():
    index = torch.tensor([4, 1])
    source = random((2, 3, 1)).expand(2, 3, 8)
    for x in (random((5, 8, 3)).transpose(1, 2), random((8, 3, 5)).permute(2, 1, 0), random((5, 6, 16))[:, ::2, 4:12]):
        expected = plain_add(x.double(), index, source.double(), None, 1.0)
        assert scaled_index_add(x, index, source) is x
        assert_close(x, expected, scale=4.0)
    own = random((4, 2, 5))  # the source is part of what is written
    expected = plain_add(own.double(), torch.tensor([0, 1]), own[1:3].double(), None, 1.0)
    scaled_index_add(own, torch.tensor([0, 1]), own[1:3])
    assert_close(own, expected, scale=4.0)


def test_scaled_index_add_scaling_of_another_dtype():
    x, source = random((4, 2, 8), torch.bfloat16), random((2, 2, 8), torch.bfloat16, 1)
    scaling = random((8,), torch.float32, 2, True)
    index = torch.tensor([3, 0])
    expected = plain_add(x.double(), index, source.double(), scaling.detach().double(), 1.0)
    out = scaled_index_add(x, index, source.requires_grad_(), scaling)
    assert_close(out, expected, scale=1e-2)
    out.sum().backward()
    assert scaling.grad.dtype == torch.float32 and source.grad.dtype == torch.bfloat16


def test_scaled_index_add_nothing():
    for shape, count in (((0, 2, 3), 0), ((4, 0, 3), 2), ((4, 2, 0), 2), ((4, 2, 3), 0)):
        x, source = torch.ones(shape), torch.ones(count, *shape[1:])
        scaled_index_add(x, torch.arange(count), source, torch.ones(shape[2]))
        assert x.shape == shape and bool((x == 1).all())


def test_inplace_rules():
    index, source = torch.tensor([0]), torch.ones(1, 2, 3)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        scaled_index_add(torch.ones(2, 2, 3, requires_grad=True), index, source)
    x = torch.ones(2, 2, 3, requires_grad=True)
    y = x * 1
    z = y * y  # needs y as it was
    scaled_index_add(y, index, source)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(input=torch.zeros(4, 6)), "input is [4, 6] fp32 cpu, expected [rows, middle, width]"),
        (dict(source=torch.zeros(2, 3, 5)), "source is [2, 3, 5] fp32 cpu, expected [2, 2, 3]"),
        (dict(source=torch.zeros(3, 2, 3)), "source is [3, 2, 3]"),
        (dict(source=torch.zeros(2, 2, 3).half()), "source.dtype is fp16, expected fp32"),
        (dict(index=torch.tensor([0, 4])), "index[1] is 4, expected 0 <= index < 4"),
        (dict(index=torch.tensor([0, -1])), "index[1] is -1"),
        (dict(index=torch.tensor([0.0, 1.0])), "index.dtype is fp32, expected int64"),
        (dict(scaling=torch.zeros(2)), "scaling is [2] fp32 cpu, expected [3]"),
        (dict(input=torch.zeros(1, 2, 3)), "elements that lie apart"),
        (dict(source=torch.zeros(2, 2, 3, device="meta")), "source.device is meta"),
    ],
)
def test_scaled_index_add_errors(device, monkeypatch, changes, message):
    if device == "cuda":
        monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")
    changes = {name: t if t.is_meta else t.to(device) for name, t in changes.items()}
    message = message.replace(" cpu", f" {torch.empty(0).device}")
    arguments = dict(input=torch.zeros(4, 2, 3), index=torch.tensor([0, 2]), source=torch.ones(2, 2, 3), scaling=None)
    arguments.update(changes)
    if message == "elements that lie apart":
        arguments["input"] = arguments["input"].expand(4, 2, 3)
    before = arguments["input"].clone()
    with pytest.raises((ValueError, IndexError)) as error:
        scaled_index_add(**arguments)
    assert message in str(error.value) and "Fix:" in str(error.value)
    assert torch.equal(arguments["input"], before)


def test_gradcheck():
    def add(x, source, scaling):
        return scaled_index_add(x * 1, torch.tensor([1, 0, 1]), source, scaling, 0.7)

    shapes = ((4, 2, 5), (3, 2, 5), (5,))
    assert torch.autograd.gradcheck(add, tuple(random(s, torch.float64, i, True) for i, s in enumerate(shapes)))

    def select(a, b):
        return index_select_cat([a, b], [torch.tensor([1, 1, 0]), torch.tensor([2])])

    inputs = random((4, 2), torch.float64, 0, True), random((3, 5), torch.float64, 1, True)
    assert torch.autograd.gradcheck(select, inputs)


def test_same_bits_for_any_threads():
    x, source = random((40, 3, 700)), random((60, 3, 700), seed=1, requires_grad=True)
    scaling, index = random((700,), seed=2, requires_grad=True), indices_for(40, 60, repeated=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = scaled_index_add(x.clone(), index, source, scaling)
            results.append([out, *torch.autograd.grad(out.square().sum(), (source, scaling))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("count", [600, 5000])
@pytest.mark.parametrize("rows", [3, 400, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_indices_that_repeat(dtype, rows, count):
    """From one place per row to more than a block of a GPU sorts; the order of the sum stays that of the places."""
    index = indices_for(rows, count, repeated=True)
    x, source = random((rows, 1, 40), dtype), random((count, 1, 40), dtype, 1)
    expected = plain_add(x.double(), index, source.double(), None, 1.0)
    terms = 1 + (count / rows) ** 0.5
    assert_close(scaled_index_add(x, index, source), expected, scale=4.0 * terms)
    grad = torch.ops.xformers.index_select_cat_backward(source.flatten(), [index], [rows], [40])[0]
    plain = torch.zeros(rows, 40, dtype=torch.float64).index_add(0, index, source.double().flatten(1))
    assert_close(grad, plain, scale=4.0 * terms)
    again = torch.ops.xformers.index_select_cat_backward(source.flatten(), [index], [rows], [40])[0]
    assert torch.equal(grad, again)


def test_gradients_of_many_sources():
    """More than a launch takes; short and long indices, of rows that differ in width."""
    shapes = [(3 + 30 * (i % 4), 8 + 5 * i) for i in range(35)]
    sources = [random(shape, seed=i, requires_grad=True) for i, shape in enumerate(shapes)]
    indices = [indices_for(s.shape[0], 700 if i % 3 == 0 else 5, i, True) for i, s in enumerate(sources)]
    out = index_select_cat(sources, indices)
    grad = random(out.shape, seed=50)
    out.backward(grad)
    double = [wide(s) for s in sources]
    torch.cat([s[i].flatten() for s, i in zip(double, indices, strict=True)]).backward(grad.double())
    for source, other in zip(sources, double, strict=True):
        assert_close(source.grad, other.grad, scale=100.0)
