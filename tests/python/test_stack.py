"""unbind, stack_or_none and get_stack_strides: views where memory allows, and no copy in backward."""

import pytest
import torch
from attention_inputs import random
from torch.library import opcheck

from xformers.ops import memory_efficient_attention

unbind = torch.ops.xformers.unbind
stack_or_none = torch.ops.xformers.stack_or_none
strides_of = torch.ops.xformers.get_stack_strides


def storage(x):
    return x.untyped_storage().data_ptr()


@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("dim", range(-5, 5))
def test_slices_of_one_tensor(dim, permuted):
    x = random((3, 4, 5, 6, 7))
    if permuted:
        x = x.permute(3, 1, 4, 0, 2)
    for part in (slice(None), slice(1, None), slice(None, 2), slice(None, None, 2)):
        pieces = x.unbind(dim)[part]
        expected = torch.stack(pieces, dim)
        view = stack_or_none(list(pieces), dim)
        assert torch.equal(view, expected) and storage(view) == storage(x)
        assert strides_of(list(pieces), dim) == list(view.stride())


def test_what_is_no_stack():
    x = random((3, 4, 5))
    a, b, c = x.unbind(0)
    no_stacks = {
        "one tensor": [a],
        "none": [],
        "backwards": [c, b, a],
        "uneven steps": [a, b, b],
        "other storage": [a, b.clone()],
        "other shape": [a, b[:3]],
        "other strides": [a[:, :4], b[:, :4].clone()],
        "other dtype": [a, b.view(torch.int32)],
    }
    for name, tensors in no_stacks.items():
        assert stack_or_none(tensors, 0) is None, name
        assert strides_of(tensors, 0) == [], name
    assert strides_of([a, b], 3) == [] and strides_of([a, b], -4) == []
    assert strides_of([a, a], 0) == [0, 5, 1]  # a step of 0: the same tensor again


def test_stack_or_none_has_a_gradient():
    x = random((3, 4, 5), torch.float64, requires_grad=True)
    y = stack_or_none(list(x.unbind(1)), 1)
    grad = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], grad)
    assert torch.autograd.gradcheck(lambda t: stack_or_none(list(t.unbind(2)), 0).square(), (x,))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_unbind(dim):
    x = random((3, 4, 5), torch.float64, requires_grad=True)
    pieces = unbind(x, dim)
    assert all(torch.equal(a, b) for a, b in zip(pieces, x.unbind(dim), strict=True))
    assert {storage(p) for p in pieces} == {storage(x)}
    assert torch.autograd.gradcheck(lambda t: tuple(p * (i + 1) for i, p in enumerate(unbind(t, dim))), (x,))
    # Gradients that lie apart are stacked; pieces without one count as zero.
    (grad,) = torch.autograd.grad(unbind(x, dim)[1].sum(), x)
    expected = torch.zeros_like(x)
    expected.select(dim, 1).fill_(1)
    assert torch.equal(grad, expected)
    assert unbind(x.detach(), dim)[0].grad_fn is None


def test_unbind_passes_a_stack_of_gradients_on_as_it_is():
    x = random((2, 3, 4), requires_grad=True)
    incoming = random((2, 3, 4), seed=1)
    (grad,) = torch.autograd.grad(unbind(x, 1), x, incoming.unbind(1))
    assert torch.equal(grad, incoming) and storage(grad) == storage(incoming)


def test_unbind_under_compile_and_func():
    x = random((2, 3, 4), requires_grad=True)

    def loss(t):
        a, b, c = unbind(t, 1)
        return (a * b + c).square().sum()

    (want,) = torch.autograd.grad(loss(x), x)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), want)


def test_opcheck():
    for requires_grad in (False, True):
        x = random((3, 4, 5), requires_grad=requires_grad)
        opcheck(unbind.default, (x, 1))
        opcheck(stack_or_none.default, (list(x.unbind(1)), 1))


PACKED = {
    "BM3HK": ((2, 5, 3, 3, 8), 2),
    "BMH3K": ((2, 5, 3, 3, 8), 3),
    "3BMHK": ((3, 2, 5, 3, 8), 0),
    "B3MK": ((2, 3, 5, 8), 1),
}


@pytest.mark.parametrize("name", PACKED)
def test_attention_on_packed_qkv_has_packed_gradients(name):
    shape, dim = PACKED[name]
    packed = random(shape, requires_grad=True)
    pieces = unbind(packed, dim)
    seen = []
    for piece in pieces:
        piece.register_hook(lambda grad: seen.append(storage(grad)))
    out = memory_efficient_attention(*pieces)
    incoming = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, packed, incoming)
    assert len(set(seen)) == 1 and storage(grad) == seen[0] and grad.shape == packed.shape
    apart = [x.detach().clone().requires_grad_() for x in pieces]
    want = torch.autograd.grad(memory_efficient_attention(*apart), apart, incoming)
    assert torch.equal(grad, torch.stack(want, dim))


def test_attention_on_a_part_of_a_packed_tensor():
    """Query, key and value that share storage, but not as a stack of three: gradients of their own."""
    packed = random((2, 5, 4, 3, 8), requires_grad=True)
    q, k, v, _ = unbind(packed, 2)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    (grad,) = torch.autograd.grad(memory_efficient_attention(q, k, v).sum(), packed)
    want = torch.autograd.grad(memory_efficient_attention(*leaves).sum(), leaves)
    assert torch.equal(grad[:, :, :3], torch.stack(want, 2)) and (grad[:, :, 3] == 0).all()
    same = random((2, 5, 3, 8), requires_grad=True)  # self-attention of one tensor
    (grad,) = torch.autograd.grad(memory_efficient_attention(same, same, same).sum(), same)
    leaves = [same.detach().clone().requires_grad_() for _ in range(3)]
    want = torch.autograd.grad(memory_efficient_attention(*leaves).sum(), leaves)
    torch.testing.assert_close(grad, sum(want))
