"""Taking packed tensors apart and putting them together without copies."""

import pytest
import torch
from attention_inputs import random
from devices import on_each_device  # noqa: F401

from xformers.ops import LowerTriangularMask, get_stack_strides, memory_efficient_attention, stack_or_none, unbind

LAYOUTS = {
    "contiguous": lambda: random((2, 3, 4, 5, 6)),
    "permuted": lambda: random((6, 3, 2, 5, 4)).permute(2, 1, 4, 3, 0),
    "sliced": lambda: random((2, 3, 4, 5, 9))[..., 2:8],
}
DIMS = [*range(5), -1, -3]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unbind_gives_views_and_a_stack_gives_them_back(layout, dim):
    x = LAYOUTS[layout]()
    parts = unbind(x, dim)
    assert isinstance(parts, tuple)
    for part, expected in zip(parts, x.unbind(dim), strict=True):
        assert torch.equal(part, expected) and part.data_ptr() == expected.data_ptr()
    strides = get_stack_strides(parts, dim)
    stacked = stack_or_none(parts, dim)
    assert stacked.stride() == strides == x.stride() and stacked.data_ptr() == x.data_ptr() and torch.equal(stacked, x)


@pytest.mark.parametrize("part", [slice(None), slice(1, None), slice(2), slice(None, None, 2)], ids=str)
@pytest.mark.parametrize("dim", range(5))
def test_stack_of_some(dim, part):
    x = random((4, 4, 4, 4, 4))
    parts = x.unbind(dim)[part]
    stacked = stack_or_none(parts, dim)
    assert torch.equal(stacked, torch.stack(parts, dim)) and stacked.data_ptr() == parts[0].data_ptr()
    other = (dim + 1) % 5
    assert torch.equal(stack_or_none(parts, other), torch.stack(parts, other))  # along another dimension too


def test_what_is_no_stack():
    x = random((4, 3, 2))
    a, b, c, d = x.unbind(0)
    for parts in ([a], [], [a, b.clone()], [a, b, d], [b, a], [a, b[:2]], [a, b.t().contiguous().t()]):
        assert get_stack_strides(parts, 0) is None and stack_or_none(parts, 0) is None
    assert get_stack_strides([a, b], 3) is None
    assert get_stack_strides([a, c], 0) == (12, 2, 1)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients(dim):
    x = random((2, 3, 4, 5, 6), torch.float64, requires_grad=True)
    weights = [random(part.shape, torch.float64, seed=i) for i, part in enumerate(x.unbind(dim))]
    (grad,) = torch.autograd.grad(sum((a * w).sum() for a, w in zip(unbind(x, dim), weights, strict=True)), x)
    assert torch.equal(grad, torch.stack(weights, dim))
    assert torch.autograd.gradcheck(lambda y: unbind(y, dim), (x,))
    parts = unbind(x, dim)
    weight = random((2, 3, 4, 5, 6), torch.float64, seed=9)
    (grad,) = torch.autograd.grad((stack_or_none(parts, dim) * weight).sum(), x)
    assert torch.equal(grad, weight)


def test_some_parts_without_gradient():
    x = random((3, 2), requires_grad=True)
    (grad,) = torch.autograd.grad(unbind(x, 0)[1].sum(), x)
    assert grad.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_backward_copies_nothing_where_gradients_form_a_stack():
    """A packed qkv: its gradient is the very memory that gradients of q, k and v were written to."""
    buffer = random((2, 5, 3, 2, 8))
    x = random((2, 5, 3, 2, 8), requires_grad=True)
    parts = unbind(x, 2)
    torch.autograd.backward(parts, buffer.unbind(2))
    assert torch.equal(x.grad, buffer)
    seen = []
    y = random((2, 5, 3, 2, 8), requires_grad=True)
    y.register_hook(lambda grad: seen.append(grad.data_ptr()))
    torch.autograd.backward(unbind(y, 2), buffer.unbind(2))
    assert seen == [buffer.data_ptr()]


def test_attention_on_a_packed_tensor():
    packed = random((2, 9, 3, 4, 16), requires_grad=True)
    plain = packed.detach().clone().requires_grad_()
    torch.use_deterministic_algorithms(True)  # or the order of a sum may differ on a GPU
    try:
        memory_efficient_attention(*unbind(packed, 2), LowerTriangularMask()).square().sum().backward()
        memory_efficient_attention(*plain.unbind(2), LowerTriangularMask()).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(packed.grad, plain.grad)
