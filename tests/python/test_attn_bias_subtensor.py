"""Biases that are tensors: what PyTorch may do with them, and what it may not."""

import copy
import operator
import pickle

import pytest
import torch
from attention_inputs import qkv, random
from torch.utils.checkpoint import checkpoint
from xformers.ops.fmha.attn_bias import AttentionBias, LowerTriangularMask, LowerTriangularMaskWithTensorBias

from xformers.ops import memory_efficient_attention


class Named(LowerTriangularMask):
    """A user's subclass, with a field of its own."""

    name: str = "none"


class NamedBias(LowerTriangularMaskWithTensorBias):
    name: str = "none"


def named(cls, *args):
    mask = cls(*args)
    mask.name = "mine"
    return mask


def test_is_a_tensor_and_a_bias():
    mask, biased = LowerTriangularMask(), LowerTriangularMask().add_bias(torch.zeros(1, 2, 3, 4))
    for x in (mask, biased):
        assert isinstance(x, torch.Tensor) and isinstance(x, AttentionBias) and torch.is_tensor(x)
    assert type(biased) is LowerTriangularMaskWithTensorBias and isinstance(biased, LowerTriangularMask)


def test_attributes_of_the_mask():
    mask = LowerTriangularMask()
    assert mask.ndim == 0 and mask.shape == () and not mask.requires_grad and mask.dtype == torch.float32
    assert mask._subtensor.shape == (0,) and mask.device == mask._subtensor.device
    given = LowerTriangularMask(_subtensor=torch.empty(0, dtype=torch.float16, device="meta"))
    assert given.device.type == "meta" and given.dtype == torch.float16


def test_attributes_of_the_bias():
    tensor = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = LowerTriangularMaskWithTensorBias(tensor)
    assert mask.shape == tensor.shape and mask.ndim == 4 and mask.dtype == tensor.dtype and mask.requires_grad
    assert mask._subtensor is tensor and not LowerTriangularMaskWithTensorBias(tensor.detach()).requires_grad


MOVES = {
    "clone": lambda x: x.clone(),
    "torch.clone": torch.clone,
    "detach": lambda x: x.detach(),
    "to device": lambda x: x.to("meta"),
    "to dtype": lambda x: x.to(torch.float16),
    "to both": lambda x: x.to(device="meta", dtype=torch.float16),
    "cpu": lambda x: x.cpu(),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", MOVES)
def test_class_and_fields_survive(name, inference):
    for mask in (named(Named), named(NamedBias, torch.randn(1, 2, 3, 4))):
        with torch.inference_mode(inference):
            moved = MOVES[name](mask)
        assert type(moved) is type(mask) and moved.name == "mine"
        assert moved.shape == mask.shape and moved.device == moved._subtensor.device
        assert moved.dtype == moved._subtensor.dtype
        assert moved.device.type == ("meta" if name in ("to device", "to both") else "cpu")
        assert moved.dtype == (torch.float16 if name in ("to dtype", "to both") else torch.float32)
        if name in ("clone", "detach", "pickle", "deepcopy") and mask.ndim:
            assert torch.equal(moved._subtensor, mask._subtensor)


def test_to_where_it_is_already_is_itself():
    mask = named(NamedBias, torch.zeros(2))
    assert mask.to("cpu") is mask and mask.to(torch.float32) is mask


SLICES = {
    "unsqueeze": lambda x: x.unsqueeze(0),
    "select": lambda x: x.select(1, 0),
    "index": lambda x: x[0],
    "slice": lambda x: x[:, :1, ..., 1:3],
    "expand": lambda x: x.expand(5, -1, -1, -1),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_of_a_bias(name):
    tensor = torch.randn(1, 2, 3, 4)
    part = SLICES[name](named(NamedBias, tensor))
    assert type(part) is NamedBias and part.name == "mine" and part.HOLDS_DENSE_TENSOR
    assert torch.equal(part._subtensor, SLICES[name](tensor)) and part.shape == part._subtensor.shape


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 1,
        lambda x: x * 2,
        lambda x: torch.add(x, 1),
        lambda x: torch.stack([x, x]),
        lambda x: x.sum(),
        lambda x: x.add_(1),
        lambda x: x.exp_(),
        lambda x: operator.iadd(x, 1),
        lambda x: x.__setitem__(..., 1),
        lambda x: torch.nn.functional.relu(x),
    ],
)
@pytest.mark.parametrize(
    "mask", [LowerTriangularMask(), LowerTriangularMaskWithTensorBias(torch.zeros(2, 3))], ids=repr
)
def test_computing_with_a_mask_is_refused(mask, compute):
    with pytest.raises(TypeError):
        compute(mask)
    if mask.ndim:
        assert (mask._subtensor == 0).all()


def test_slicing_a_mask_without_bias_meets_any_refusal():
    with pytest.raises((TypeError, IndexError)):
        LowerTriangularMask().unsqueeze(0)
    with pytest.raises(NotImplementedError, match="add_bias is called on a LowerTriangularMaskWithTensorBias"):
        LowerTriangularMaskWithTensorBias(torch.zeros(2)).add_bias(torch.zeros(2))


def test_truth_equality_and_text():
    mask = LowerTriangularMask()
    assert mask and mask == mask and mask != LowerTriangularMask() and mask in [mask] and len({mask, mask}) == 1
    assert repr(mask) == "LowerTriangularMask()" and str(mask) == "LowerTriangularMask()"
    assert repr(LowerTriangularMaskWithTensorBias(torch.zeros(1))) == "LowerTriangularMaskWithTensorBias(tensor([0.]))"


def test_no_argument_and_shared_between_calls():
    def attend(q, k, v, bias=LowerTriangularMask()):  # noqa: B008  (that it can be a default is the point)
        return memory_efficient_attention(q, k, v, bias)

    inputs = qkv()
    assert torch.equal(attend(*inputs), attend(*inputs))
    with torch.inference_mode():
        assert LowerTriangularMask().ndim == 0
        attend(*qkv(requires_grad=False), LowerTriangularMask())


def test_gradient_flows_unchanged():
    tensor = torch.randn(2, 3, 5, 7, requires_grad=True)
    mask = LowerTriangularMask().add_bias(tensor)
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value, mask)
    (grad,) = torch.autograd.grad(out.sum(), tensor, retain_graph=True)
    (of_mask,) = torch.autograd.grad(out.sum(), mask)
    assert (grad != 0).any() and torch.equal(grad, of_mask)
    cut = memory_efficient_attention(query, key, value, mask.detach())
    assert torch.autograd.grad(cut.sum(), tensor, allow_unused=True) == (None,)
    assert torch.equal(cut, out)


def test_requires_grad_of_the_mask_itself():
    mask = LowerTriangularMaskWithTensorBias(torch.randn(2, 3, 5, 7)).requires_grad_()
    memory_efficient_attention(*qkv(), mask).sum().backward()
    assert mask.grad.shape == (2, 3, 5, 7) and (mask.grad != 0).any()


def test_only_the_bias_requires_grad():
    tensor = torch.randn(2, 3, 5, 7, requires_grad=True)
    memory_efficient_attention(*qkv(requires_grad=False), LowerTriangularMask().add_bias(tensor)).sum().backward()
    assert tensor.grad.shape == tensor.shape


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant):
    inputs = qkv()
    tensor = random((2, 3, 5, 7), seed=3, requires_grad=True)
    for mask in (LowerTriangularMask(), LowerTriangularMask().add_bias(tensor)):
        leaves = [*inputs, tensor] if mask.ndim else inputs
        expected = torch.autograd.grad(memory_efficient_attention(*inputs, mask).sum(), leaves)
        out = checkpoint(memory_efficient_attention, *inputs, mask, use_reentrant=use_reentrant)
        for x in leaves:
            x.grad = None
        out.sum().backward()
        assert all(torch.equal(x.grad, grad) for x, grad in zip(leaves, expected, strict=True))


def test_python_function_of_autograd_takes_one():
    class Pass(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mask):
            ctx.save_for_backward(mask)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            (mask,) = ctx.saved_tensors
            assert isinstance(mask, LowerTriangularMask)
            return grad, None

    x = torch.ones(2, requires_grad=True)
    Pass.apply(x, LowerTriangularMask()).sum().backward()
    assert (x.grad == 1).all()
