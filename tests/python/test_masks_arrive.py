"""A mask that is a tensor to PyTorch arrives whole wherever something wraps tensors anew, or an error names it: it is
never taken for the tensor that it carries (docs/design/masks.md)."""

import copy
import io

import pytest
import torch
from attention_inputs import random
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import memory_efficient_attention

SCORES = random((1, 4, 20, 20), seed=7)
MAKE = {
    "causal": ab.LowerTriangularMask,
    "causal and scores": lambda: ab.LowerTriangularMask().add_bias(SCORES.clone()),
}
BOTH = pytest.mark.parametrize("mask", MAKE)
X = random((1, 20, 4, 8))


def attend(x, mask):
    return memory_efficient_attention(x, x, x, mask)


def dense(mask):
    """What the mask stands for, written down."""
    hidden = torch.ones(20, 20, dtype=torch.bool).triu(1)
    return (torch.zeros(1, 4, 20, 20) if mask == "causal" else SCORES).masked_fill(hidden, -torch.inf)


def expected(mask, x=X):
    return memory_efficient_attention(x, x, x, dense(mask).to(x.dtype))


def assert_masked(out, mask, **tolerance):
    torch.testing.assert_close(out, expected(mask), **tolerance)


class Attribute(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = MAKE[mask]()

    def forward(self, x):
        return attend(x, self.mask)


class Buffer(nn.Module):
    def __init__(self, mask, persistent=True):
        super().__init__()
        self.register_buffer("mask", MAKE[mask](), persistent)

    def forward(self, x):
        return attend(x, self.mask)


class Entry(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.options = {"mask": MAKE[mask]()}

    def forward(self, x):
        return attend(x, **self.options)


class MadeInside(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.scores = nn.Parameter(SCORES.clone()) if mask != "causal" else None

    def forward(self, x):
        mask = ab.LowerTriangularMask()
        return attend(x, mask if self.scores is None else mask.add_bias(self.scores))


def default_argument(mask):
    class DefaultArgument(nn.Module):
        def forward(self, x, mask=MAKE[mask]()):  # noqa: B008
            return attend(x, mask)

    return DefaultArgument()


PLACES = {
    "attribute": Attribute,
    "buffer": Buffer,
    "buffer of no checkpoint": lambda mask: Buffer(mask, persistent=False),
    "entry of a dict": Entry,
    "default argument": default_argument,
    "made inside": MadeInside,
}


class Argument(nn.Module):
    def forward(self, x, mask):
        return attend(x, mask)


@BOTH
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, place, mask):
    program = torch.export.export(PLACES[place](mask), (X,), strict=strict)
    assert_masked(program.module()(X), mask)
    assert_masked(program.run_decompositions().module()(X), mask)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_masked(torch.export.load(file).module()(X), mask)


@BOTH
@pytest.mark.parametrize("strict", [True, False])
def test_export_as_an_argument(strict, mask):
    if strict and mask != "causal":
        with pytest.raises(AssertionError, match="AttrSource"):  # PyTorch finds no source for the tensor inside
            torch.export.export(Argument(), (X, MAKE[mask]()), strict=True)
        return
    program = torch.export.export(Argument(), (X, MAKE[mask]()), strict=strict)
    assert_masked(program.module()(X, MAKE[mask]()), mask)


@BOTH
@pytest.mark.parametrize("place", PLACES)
def test_compile(place, mask):
    torch._dynamo.reset()
    compiled = torch.compile(PLACES[place](mask), fullgraph=True, backend="aot_eager")
    assert_masked(compiled(X), mask)


@BOTH
def test_tracers(mask):
    assert_masked(make_fx(attend)(X, MAKE[mask]())(X, MAKE[mask]()), mask)
    assert_masked(torch.jit.trace(Buffer(mask), (X,), check_trace=False)(X), mask)


@BOTH
def test_function_transforms_over_the_mask(mask):
    given = MAKE[mask]()
    out, pullback = torch.func.vjp(lambda m: attend(X, m), given)
    assert_masked(out, mask)
    (gradient,) = pullback(torch.ones_like(out))
    if mask == "causal":
        assert gradient.shape == () and gradient == 0
    else:
        scores = dense(mask).requires_grad_()
        (wanted,) = torch.autograd.grad(memory_efficient_attention(X, X, X, scores).sum(), scores)
        torch.testing.assert_close(gradient, wanted)
    assert_masked(torch.func.functionalize(attend)(X, MAKE[mask]()), mask)
    assert_masked(torch.func.functional_call(Buffer(mask), {"mask": MAKE[mask]()}, (X,)), mask)
    query = torch.func.grad(lambda x: attend(x, MAKE[mask]()).square().sum())(X)
    x = X.clone().requires_grad_()
    torch.testing.assert_close(query, torch.autograd.grad(expected(mask, x).square().sum(), x)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@BOTH
def test_vmap(mask):
    out = torch.vmap(attend, in_dims=(0, None))(torch.stack([X, -X]), MAKE[mask]())
    assert_masked(out[0], mask)
    if mask == "causal":
        with pytest.raises(ValueError, match="dimensionality 0"):
            torch.vmap(attend, in_dims=(None, 0))(X, MAKE[mask]())
        return
    for dim in (0, 1, 2):
        both = torch.stack([SCORES, -SCORES], dim)
        out = torch.vmap(attend, in_dims=(None, dim))(X, ab.LowerTriangularMaskWithTensorBias(both))
        assert_masked(out[0], mask)
        assert not torch.equal(out[0], out[1])


def test_gradients_through_transforms():
    """Of what a mask is made of inside, and of a mask that is a leaf."""
    wanted = dense("causal and scores").requires_grad_()
    (wanted_gradient,) = torch.autograd.grad(memory_efficient_attention(X, X, X, wanted).sum(), wanted)
    got = torch.func.grad(lambda s: attend(X, ab.LowerTriangularMask().add_bias(s)).sum())(SCORES)
    torch.testing.assert_close(got, wanted_gradient)
    leaf = MAKE["causal and scores"]().requires_grad_()
    torch.func.vjp(lambda x: attend(x, leaf), X)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, wanted_gradient)


CONVERSIONS = {
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to dtype": lambda m: m.to(torch.float64),
    "to device": lambda m: m.to("cpu"),
    "to memory format": lambda m: m.to(memory_format=torch.channels_last),
    "type": lambda m: m.type(torch.float64),
    "type by name": lambda m: m.type("torch.DoubleTensor"),
    "cpu": lambda m: m.cpu(),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "meta and back": lambda m: m.to("meta").to_empty(device="cpu"),
    "share_memory": lambda m: m.share_memory(),
    "deepcopy": copy.deepcopy,
    "apply": lambda m: m._apply(lambda t: t.detach().clone()),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "load": lambda m: m,
    "assign": lambda m: m,
}


@BOTH
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_of_a_module(name, swap, mask):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        module = CONVERSIONS[name](Buffer(mask))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert type(module.mask) is type(MAKE[mask]())
    if name in ("to_empty", "meta and back", "load"):
        module.load_state_dict(Buffer(mask).state_dict())
    if name == "assign":
        module.load_state_dict(Buffer(mask).state_dict(), assign=True)
    x = X.to(module.mask.dtype)
    out = module(x)
    scores = dense(mask).to(x.dtype)
    torch.testing.assert_close(out, memory_efficient_attention(x, x, x, scores))
    assert type(module.mask) is type(MAKE[mask]())


@BOTH
def test_checkpoints(mask):
    for what, options in ((Buffer(mask), {"weights_only": False}), (Buffer(mask).state_dict(), {})):
        file = io.BytesIO()
        torch.save(what, file)
        file.seek(0)
        loaded = torch.load(file, **options)
        if isinstance(loaded, dict):
            module = Buffer(mask)
            module.load_state_dict(loaded)
            assert type(loaded["mask"]) is type(MAKE[mask]())
            loaded = module
        assert_masked(loaded(X), mask)


def test_a_plain_tensor_loaded_into_a_mask_leaves_it_one():
    module = Buffer("causal and scores")
    module.load_state_dict({"mask": -SCORES})
    out = module(X)
    torch.testing.assert_close(out, attend(X, ab.LowerTriangularMaskWithTensorBias(-SCORES)))
    with pytest.raises(RuntimeError, match="size mismatch for mask"):
        Buffer("causal").load_state_dict(Buffer("causal and scores").state_dict())


NO_ELEMENTS = {
    "numpy": lambda m: m.numpy(),
    "tolist": lambda m: m.tolist(),
    "item": lambda m: m.item(),
    "stack": lambda m: torch.stack([m, m]),
    "stack_module_state": lambda m: torch.func.stack_module_state([Buffer("causal"), Buffer("causal")]),
}


@BOTH
@pytest.mark.parametrize("name", NO_ELEMENTS)
def test_elements_are_refused(name, mask):
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        NO_ELEMENTS[name](MAKE[mask]())


@BOTH
def test_data_and_parameters_are_masks(mask):
    assert_masked(attend(X, MAKE[mask]().data), mask)
    assert_masked(attend(X, MAKE[mask]().as_subclass(torch.Tensor)), mask)
    assert_masked(attend(X, nn.Parameter(MAKE[mask](), requires_grad=False)), mask)
    assert_masked(torch.ops.xformers.attention_forward(X, X, X, MAKE[mask]())[0], mask)
    with pytest.raises(TypeError, match="a mask is query, key or value"):
        torch.ops.xformers.attention_forward(MAKE[mask](), X, X)
    with pytest.raises(TypeError, match="comes with the band"):
        torch.ops.xformers.attention_forward(X, X, X, MAKE[mask](), 3, 0)
