"""SwiGLU: values and gradients of every operator against fp64, selection, autocast, module, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import DTYPES, TOLERANCE, assert_close, random, wide
from devices import on_each_device  # noqa: F401

from xformers.ops import (
    SwiGLU,
    SwiGLUEagerOp,
    SwiGLUFusedOp,
    SwiGLUOpDispatch,
    SwiGLUPackedFusedOp,
    swiglu,
    swiglu_packed,
    unbind,
)

OPS = [SwiGLUPackedFusedOp, SwiGLUFusedOp, SwiGLUEagerOp]
SHAPES = [(9, 24, 40, 16), (1, 8, 8, 8), (64, 72, 200, 72), (3, 5, 7, 2)]  # rows, in, hidden, out; also odd ones
ops = torch.ops.xformers


def parameters(shape, dtype, bias=True, requires_grad=True):
    _, width, hidden, out = shape
    sizes = [(2, hidden, width), (2, hidden) if bias else None, (out, hidden), (out,) if bias else None]
    scales = [width**-0.5, 1.0, hidden**-0.5, 1.0]
    return [
        None if size is None else (random(size, torch.float64, i) * scale).to(dtype).requires_grad_(requires_grad)
        for i, (size, scale) in enumerate(zip(sizes, scales, strict=True))
    ]


def plain(x, w1w2, b1b2, w3, b3):
    b1, b2 = (None, None) if b1b2 is None else b1b2.unbind(0)
    w1, w2 = w1w2.unbind(0)
    return F.linear(F.silu(F.linear(x, w1, b1)) * F.linear(x, w2, b2), w3, b3)


def call(op, x, w1w2, b1b2, w3, b3, copies=False):
    w1, w2 = unbind(w1w2, 0)
    b1, b2 = (None, None) if b1b2 is None else unbind(b1b2, 0)
    if copies:
        w1 = w1.clone()
    return swiglu(x, w1, b1, w2, b2, w3, b3, op=op)


def error_of(results, references):
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(results, references, strict=True)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.NAME)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(dtype, op, shape, bias):
    x = random((shape[0], shape[1]), dtype, 9, True)
    leaves = [x, *parameters(shape, dtype, bias)]
    present = [t for t in leaves if t is not None]
    out = call(op, *leaves)
    grad = random(out.shape, dtype, 10)
    grads = torch.autograd.grad(out, present, grad)
    double = [None if t is None else wide(t) for t in leaves]
    expected = plain(*double)
    others = torch.autograd.grad(expected, [t for t in double if t is not None], grad.double())
    # Several roundings on the way; against the same formula in PyTorch, which makes them all, no worse than twice.
    eager = plain(*leaves)
    eager_grads = torch.autograd.grad(eager, present, grad)
    references = [expected.detach(), *others]
    allowed = error_of([eager.detach(), *eager_grads], references)
    for mine, theirs in zip(error_of([out.detach(), *grads], references), allowed, strict=True):
        assert mine <= 2 * theirs + 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.NAME)
def test_leading_dimensions(op):
    params = parameters(SHAPES[0], torch.float32)
    x = random((2, 3, 24))
    out = call(op, x, *params)
    assert out.shape == (2, 3, 16)
    assert torch.allclose(out.flatten(0, 1), call(op, x.flatten(0, 1), *params), atol=1e-6)
    assert call(op, x[0, 0], *params).shape == (16,) and call(op, x[:0], *params).shape == (0, 3, 16)


def test_packed_and_unpacked_agree():
    x, params = random((9, 24), torch.float64), parameters(SHAPES[0], torch.float64)
    expected = plain(x, *params)
    for result in (
        swiglu_packed(x, *params, op=SwiGLUPackedFusedOp),
        call(SwiGLUFusedOp, x, *params),
        call(SwiGLUFusedOp, x, *params, copies=True),
        call(None, x, *params),
    ):
        assert torch.allclose(result, expected, rtol=1e-13, atol=1e-13)


def test_gradient_of_packed_weights_is_not_copied():
    """The backward of our unbind finds the two gradients stacked; PyTorch's would stack them."""
    for split, copies in ((unbind, False), (torch.unbind, True)):
        x, (w1w2, _, w3, _) = random((9, 24)), parameters(SHAPES[0], torch.float32)
        with torch.profiler.profile(acc_events=True) as profile:
            w1, w2 = split(w1w2, 0)
            swiglu(x, w1, None, w2, None, w3, None, op=SwiGLUFusedOp).sum().backward()
        assert ("aten::stack" in {event.name for event in profile.events()}) == copies
        assert w1w2.grad.shape == w1w2.shape


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("op", [SwiGLUPackedFusedOp, SwiGLUFusedOp], ids=lambda op: op.NAME)
def test_backward_of_what_hooks_return_is_in_place(op, holds):
    """As checkpointing does; but not where their owner looks at it afterwards, or at a view."""
    leaves, held = [random((9, 24), requires_grad=True), *parameters(SHAPES[0], torch.float32)], []

    def unpack(t):
        if t.dim() < 3:  # weights that lie side by side are one product
            return t
        t = t.clone()
        if holds:
            held.append((t[:1], t.clone()[:1]))
        return t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        out = call(op, *leaves)
    with torch.profiler.profile(acc_events=True) as profile:
        got = torch.autograd.grad(out.sum(), leaves)
    assert ("xformers::swiglu_backward_" in {event.name for event in profile.events()}) == (not holds)
    assert all(torch.equal(view, before) for view, before in held)
    assert all(map(torch.equal, got, torch.autograd.grad(call(op, *leaves).sum(), leaves)))


@pytest.mark.parametrize("op", [SwiGLUPackedFusedOp, SwiGLUFusedOp], ids=lambda op: op.NAME)
def test_last_backward_is_in_place(op):
    """The gradient of x1x2 takes its memory, but not while another backward pass may come or somebody else holds it."""
    leaves = [random((9, 24), requires_grad=True), *parameters(SHAPES[0], torch.float32)]
    out, grad = call(op, *leaves), random((9, 16), seed=10)
    results, names = [], []
    for keep in (True, True, False):
        with torch.profiler.profile(acc_events=True) as profile:
            results.append(torch.autograd.grad(out, leaves, grad, retain_graph=keep))
        names.append({event.name for event in profile.events()})
    assert ["xformers::swiglu_backward_" in seen for seen in names] == [False, False, True]
    assert ["xformers::swiglu_backward" in seen for seen in names] == [True, True, False]
    for first, *others in zip(*results, strict=True):
        assert all(torch.equal(first, other) for other in others)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, leaves, grad)

    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        out = call(op, *leaves)
    before = [t.clone() for t in held]
    again = torch.autograd.grad(out, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


def test_without_data():
    for pack in (True, False):
        module = SwiGLU(24, 40, 16, _pack_weights=pack).to("meta")
        out = module(torch.empty(2, 5, 24, device="meta"))
        assert out.is_meta and out.shape == (2, 5, 16)


def test_only_what_is_wanted():
    for index in range(5):
        leaves = [random((9, 24)), *parameters(SHAPES[0], torch.float32, requires_grad=False)]
        leaves[index].requires_grad_()
        double = [wide(t) for t in leaves]
        call(SwiGLUFusedOp, *leaves).sum().backward()
        plain(*double).sum().backward()
        assert_close(leaves[index].grad, double[index].grad, scale=100.0)


def test_selection(device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    x, (w1w2, b1b2, w3, b3) = random((4, 24), dtype), parameters(SHAPES[0], dtype)
    w1, w2 = unbind(w1w2, 0)
    b1, b2 = unbind(b1b2, 0)
    dispatch = SwiGLUOpDispatch.from_arguments(x, w1, b1, w2, b2, w3, b3)
    assert dispatch == SwiGLUOpDispatch(x.device, dtype, dtype, True, True)
    assert dispatch.op is SwiGLUPackedFusedOp
    apart = SwiGLUOpDispatch.from_arguments(x, w1.clone(), None, w2, None, w3, None)
    assert not apart.packed_weights and not apart.bias_enabled and apart.op is SwiGLUFusedOp
    mixed = SwiGLUOpDispatch.from_arguments(x, *(t.half() for t in (w1, b1, w2, b2, w3, b3)))
    assert mixed.dtype_autocast_gpu == torch.float16 and mixed.op is SwiGLUEagerOp
    with torch.autocast(device, torch.bfloat16):
        under = SwiGLUOpDispatch.from_arguments(x.float(), w1, b1, w2, b2, w3, b3)
        assert under.dtype_autocast_gpu == torch.bfloat16 and under.op is SwiGLUPackedFusedOp
    assert [str(op) for op in OPS] == ["SwiGLUOp:fused.p.cpp", "SwiGLUOp:fused", "SwiGLUOp:eager"]
    assert [op.PACKED_WEIGHTS for op in OPS] == [True, False, False]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.NAME)
def test_autocast(device, op):
    leaves = [random((9, 24), torch.float32, 9, True), *parameters(SHAPES[0], torch.float32)]
    with torch.autocast(device, torch.bfloat16):
        out = call(op, *leaves)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    low = [t.detach().bfloat16().requires_grad_() for t in leaves]
    expected = call(op, *low, copies=op is SwiGLUFusedOp)  # casts of single weights no longer lie side by side
    expected.sum().backward()
    assert torch.equal(out, expected)
    for leaf, other in zip(leaves, low, strict=True):
        assert leaf.grad.dtype == torch.float32 and torch.equal(leaf.grad, other.grad.float())


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_module(pack, bias):
    module = SwiGLU(24, 40, 16, bias, _pack_weights=pack)
    layers = ["w12", "w3"] if pack else ["w1", "w2", "w3"]
    names = [f"{layer}.{kind}" for layer in layers for kind in (["weight", "bias"] if bias else ["weight"])]
    assert list(module.state_dict()) == names and module.op is None
    x = random((2, 5, 24))
    w1, b1, w2, b2, w3, b3 = module._ordered_params()
    expected = F.linear(F.silu(F.linear(x, w1, b1)) * F.linear(x, w2, b2), w3, b3)
    assert torch.allclose(module(x), expected, atol=1e-6)
    if pack:
        w1w2, b1b2, _, _ = module._packed_ordered_params()
        assert w1w2.data_ptr() == module.w12.weight.data_ptr() and w1w2.shape == (2, 40, 24)
        assert (b1b2 is None) == (not bias)
        module.op = SwiGLUFusedOp
        with pytest.raises(AssertionError):
            module(x)
        module.op = SwiGLUPackedFusedOp
        assert torch.allclose(module(x), expected, atol=1e-6)
    else:
        with pytest.raises(AssertionError):
            module._packed_ordered_params()
        module.op = SwiGLUEagerOp
        assert torch.allclose(module(x), expected, atol=1e-6)
    module.op = None
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())
    assert SwiGLU(24, 40).w3.out_features == 24


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype):
    x1, x2 = (random((33, 1030), dtype, i, True) for i in range(2))
    wide1, wide2 = wide(x1), wide(x2)
    out, expected = ops.silu_gate(x1, x2), F.silu(wide1) * wide2
    assert_close(out, expected, roundings=1.02)
    grad = random(out.shape, dtype, 3)
    out.backward(grad)
    expected.backward(grad.double())
    assert_close(x2.grad, wide2.grad, roundings=1.02)
    assert_close(
        x1.grad, wide1.grad, scale=1.0 if dtype.itemsize >= 4 else 1e-2, roundings=1.02
    )  # 1 + x (1 - s) has a zero
    both, again = ops.silu_bw_fused(x1.detach(), x2.detach(), grad)
    assert torch.equal(again, out) and torch.equal(both[:, 0], x1.grad) and torch.equal(both[:, 1], x2.grad)


def test_gate_streams_and_special_values():
    x1, x2 = random((1000, 5003)), random((1000, 5003), seed=1)
    assert_close(ops.silu_gate(x1, x2), F.silu(x1.double()) * x2.double())
    both, _ = ops.silu_bw_fused(x1, x2, x2)
    assert_close(both[:, 1], x2.double() * F.silu(x1.double()))
    edges = torch.tensor([[float("nan"), float("inf"), -float("inf"), -200.0, -105.0, -88.0, 90.0, 200.0, 0.0, -0.0]])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = edges.to(dtype)
        expected = F.silu(x.double())
        result = ops.silu_gate(x, torch.ones_like(x)).double()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.allclose(result.nan_to_num(0), expected.nan_to_num(0), rtol=1e-2, atol=1e-30)


def test_primitives():
    x, (w1w2, b1b2, _, _) = random((9, 24)), parameters(SHAPES[0], torch.float32, requires_grad=False)
    x1, x2, x4 = ops.dual_gemm_silu_identity_mul(x, w1w2[0], b1b2[0], w1w2[1], b1b2[1])
    assert torch.allclose(x1, F.linear(x, w1w2[0], b1b2[0])) and torch.allclose(x2, F.linear(x, w1w2[1], b1b2[1]))
    assert torch.allclose(x4, F.silu(x1) * x2, atol=1e-6)
    out_mm, out_sum = torch.empty(16, 40), torch.empty(16)
    a, b = random((9, 16)).t(), random((9, 40))
    ops.gemm_fused_operand_sum(a, b, out_mm, out_sum)
    assert torch.allclose(out_mm, a @ b, atol=1e-6) and torch.allclose(out_sum, a.sum(1), atol=1e-6)


def test_gradcheck():
    leaves = [random((3, 4), torch.float64, 9, True), *parameters((3, 4, 5, 2), torch.float64)]
    for op in (SwiGLUPackedFusedOp, SwiGLUFusedOp):
        assert torch.autograd.gradcheck(lambda *args, op=op: call(op, *args), leaves)
    x1, x2 = random((3, 4), torch.float64, 0, True), random((3, 4), torch.float64, 1, True)
    assert torch.autograd.gradcheck(ops.silu_gate, (x1, x2))


@pytest.mark.parametrize("op", [None, *OPS], ids=str)
def test_wrong_shapes(op):
    good = dict(
        x=torch.ones(3, 4), w1=torch.ones(5, 4), b1=torch.ones(5), w2=torch.ones(5, 4), b2=torch.ones(5),
        w3=torch.ones(2, 5), b3=torch.ones(2),
    )  # fmt: skip
    for name, shape in (
        ("w1", (5, 3)),
        ("w2", (4, 4)),
        ("w3", (2, 4)),
        ("b1", (4,)),
        ("b2", (1,)),
        ("b3", (5,)),
        ("w3", (2,)),
    ):
        with pytest.raises(ValueError, match=name):
            swiglu(**{**good, name: torch.ones(shape)}, op=op)


def test_other_errors():
    x, w1, w2, w3 = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5, 4), torch.ones(2, 5)
    bias = torch.ones(5)
    with pytest.raises(NotImplementedError, match="stacked in memory"):
        swiglu(x, w1, None, w2, None, w3, None, op=SwiGLUPackedFusedOp)
    both = torch.ones(2, 5, 4).unbind(0)
    with pytest.raises(NotImplementedError, match="stacked in memory"):
        swiglu(x, both[0], bias, both[1], bias.clone(), w3, None, op=SwiGLUPackedFusedOp)
    with pytest.raises(AssertionError):
        swiglu(x, both[0], bias, both[1], None, w3, None, op=SwiGLUPackedFusedOp)
    with pytest.raises(AssertionError):
        swiglu_packed(x, torch.ones(2, 5, 4), None, w3, None, op=SwiGLUFusedOp)
    with pytest.raises(ValueError, match="b2 is None beside b1"):
        swiglu(x, w1, bias, w2, None, w3, None, op=SwiGLUFusedOp)
    with pytest.raises(ValueError, match="w1.dtype is fp16, expected fp32"):
        swiglu(x, w1.half(), None, w2.half(), None, w3.half(), None, op=SwiGLUFusedOp)
