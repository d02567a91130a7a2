"""The block operators under torch.library.opcheck, torch.compile, torch.func and every instruction set."""

import os

import pytest
import torch
from blocks_reference import TOLERANCE, random
from torch.library import opcheck
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask

from xformers.ops import (
    RMSNorm,
    SwiGLU,
    index_select_cat,
    rms_norm,
    rms_norm_add,
    rope_padded,
    scaled_index_add,
)

ops = torch.ops.xformers
INDEX = torch.tensor([2, 0])
STATE = torch.tensor([3, 4])
STARTS = torch.tensor([0, 3], dtype=torch.int32)
KEY_STARTS, KEY_LENGTH = torch.tensor([0, 6], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)


def leaf(*shape, seed=0, grad=True):
    return random(shape, torch.float32, seed, grad)


def inner(*shape, seed=0):
    """A tensor in a graph: what may be written into."""
    return leaf(*shape, seed=seed) * 1


def rope_tensors(grad=False):
    heads = ((1, 3, 4, 8), (1, 3, 2, 8), (1, 3, 2, 8), (1, 6, 2, 8), (1, 6, 2, 8))
    return *(random(shape, seed=i) for i, shape in enumerate(heads)), STARTS, KEY_STARTS, KEY_LENGTH


CALLS = {
    "bias_act_dropout": lambda: (
        ops.bias_act_dropout,
        (leaf(4, 8), leaf(8, seed=1), leaf(4, 8, seed=2), "gelu", 0.5, STATE),
    ),
    "bias_act_dropout_bare": lambda: (ops.bias_act_dropout, (leaf(4, 8),)),
    "bias_act_dropout_backward": lambda: (
        ops.bias_act_dropout_backward,
        (leaf(4, 8, grad=False), leaf(4, 8, grad=False), leaf(8, grad=False), "smelu", 0.5, STATE),
    ),
    "fused_layer_norm": lambda: (ops.fused_layer_norm, (leaf(4, 8), leaf(8, seed=1), leaf(8, seed=2))),
    "fused_linear": lambda: (ops.fused_linear, (leaf(4, 8), leaf(6, 8), leaf(6), "relu")),
    "index_select_cat": lambda: (ops.index_select_cat, ([leaf(4, 3), leaf(5, 2)], [INDEX, INDEX])),
    "index_select_cat_backward": lambda: (ops.index_select_cat_backward, (leaf(6, grad=False), [INDEX], [4], [3])),
    "scaled_index_add_": lambda: (
        ops.scaled_index_add_,
        (leaf(4, 2, 3, grad=False), INDEX, leaf(2, 2, 3, grad=False), leaf(3, grad=False), 0.5),
    ),
    "scaled_index_add_backward": lambda: (
        ops.scaled_index_add_backward,
        (leaf(4, 2, 3, grad=False), INDEX, leaf(2, 2, 3, grad=False), leaf(3, grad=False), 0.5),
    ),
    "rms_norm": lambda: (ops.rms_norm, (leaf(4, 8), leaf(8, seed=1))),
    "rms_norm_bare": lambda: (ops.rms_norm, (leaf(4, 8),)),
    "rms_norm_add_": lambda: (ops.rms_norm_add_, (leaf(4, 8, grad=False), leaf(4, 8, grad=False), leaf(8, grad=False))),
    "rms_norm_backward": lambda: (ops.rms_norm_backward, (leaf(4, 8, grad=False), leaf(4, 8, grad=False), None)),
    "layer_norm": lambda: (ops.layer_norm, (leaf(4, 8), leaf(8, seed=1), leaf(8, seed=2))),
    "layer_norm_backward": lambda: (ops.layer_norm_backward, (leaf(4, 8, grad=False), leaf(4, 8, grad=False))),
    "product": lambda: (ops.product, (leaf(4, 8, grad=False), leaf(8, 5, grad=False), leaf(5, grad=False))),
    "rope_padded": lambda: (ops.rope_padded, rope_tensors()),
    "rotary": lambda: (ops.rotary, (leaf(2, 5, 8),)),
    "softmax": lambda: (ops.softmax, (leaf(2, 4, 8), leaf(4, 8, seed=1), True)),
    "log_softmax": lambda: (ops.log_softmax, (leaf(2, 4, 8), leaf(2, 1, 8, seed=1))),
    "softmax_backward": lambda: (ops.softmax_backward, (leaf(4, 8, grad=False), leaf(4, 8, grad=False), True, True)),
    "silu_gate": lambda: (ops.silu_gate, (leaf(4, 8), leaf(4, 8, seed=1))),
    "silu_bw_fused": lambda: (ops.silu_bw_fused, tuple(leaf(4, 8, seed=i, grad=False) for i in range(3))),
    "silu_gate_backward": lambda: (ops.silu_gate_backward, tuple(leaf(4, 8, seed=i, grad=False) for i in range(3))),
    "silu_gate_backward_out": lambda: (
        ops.silu_gate_backward_out,
        (*(leaf(4, 8, seed=i, grad=False) for i in range(3)), leaf(4, 2, 8, grad=False), True, True),
    ),
    "swiglu_backward_": lambda: (
        ops.swiglu_backward_,
        (
            *(leaf(4, 5, grad=False), leaf(4, 8, grad=False), leaf(4, 2, 6, grad=False)),
            *(leaf(6, 8, grad=False), leaf(6, 8, grad=False), leaf(5, 6, grad=False)),
        ),
    ),
    "swiglu_fused": lambda: (
        ops.swiglu_fused,
        (leaf(4, 8), leaf(6, 8), leaf(6), leaf(6, 8, seed=1), leaf(6, seed=1), leaf(5, 6), leaf(5)),
    ),
    "swiglu_packedw": lambda: (ops.swiglu_packedw, (leaf(4, 8), leaf(2, 6, 8), leaf(2, 6), leaf(5, 6), leaf(5))),
    "tiled_matmul": lambda: (ops.tiled_matmul, ([leaf(2, 3), leaf(2, 4)], [leaf(3, 5), leaf(4, 5)], [2], [5], [3, 4])),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    op, arguments = CALLS[name]()
    opcheck(op.default, arguments)


def test_opcheck_out():
    opcheck(ops.rope_padded_out.default, rope_tensors(), dict(out_q=torch.empty(1, 3, 4, 8)))


def train(*inputs):
    """A block of all of them, with in-place ones between."""
    x, y, weight, source, scaling = inputs
    h = rms_norm(x, weight)
    h = h + ops.rotary(h)
    out = rms_norm_add(h, y, weight)
    scaled_index_add(out, INDEX, source, scaling, 0.5)
    return index_select_cat([out.flatten(1), h.flatten(1)], [INDEX, INDEX])


@pytest.mark.parametrize("backend, dynamic", [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compiled(backend, dynamic):
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(train, fullgraph=True, backend=counter, dynamic=dynamic)
    for rows in (4, 6, 7):
        shapes = [(rows, 3, 8), (rows, 3, 8), (8,), (2, 3, 8), (8,)]
        inputs = [random(shape, seed=i, requires_grad=True) for i, shape in enumerate(shapes)]
        out, expected = compiled(*inputs), train(*inputs)
        assert torch.allclose(out, expected, atol=1e-6)
        grads = torch.autograd.grad(out.square().sum(), inputs)
        others = torch.autograd.grad(expected.square().sum(), inputs)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))
    if dynamic:
        assert counter.frame_count == 1


def test_modules_compile():
    norm, layer, x = RMSNorm(8), SwiGLU(8, 16, 8), leaf(2, 3, 8)

    def block(x):
        return x + layer(norm(x))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), block(x), atol=1e-6)
    compiled(x).sum().backward()
    grads = [p.grad.clone() for p in (x, *layer.parameters())]
    for p in (x, *layer.parameters()):
        p.grad = None
    block(x).sum().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(grads, (x, *layer.parameters()), strict=True))


def test_rope_compiles():
    bias = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(q_seqlen=[3], kv_padding=6, kv_seqlen=[5])
    compiled = torch.compile(rope_padded, fullgraph=True, backend="aot_eager")
    one, two = list(rope_tensors())[:5], list(rope_tensors())[:5]
    assert torch.equal(compiled(*one, bias), rope_padded(*two, bias))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_compiled_autograd():
    x, weight = leaf(4, 8), leaf(8, seed=1)
    expected = torch.autograd.grad(rms_norm(x, weight).square().sum(), (x, weight))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        rms_norm(x, weight).square().sum().backward()
    assert torch.allclose(x.grad, expected[0]) and torch.allclose(weight.grad, expected[1])


def test_func_grad():
    x, weight = leaf(4, 8, grad=False), leaf(8, seed=1, grad=False)
    assert torch.allclose(
        torch.func.grad(lambda x: rms_norm(x, weight).square().sum())(x),
        torch.autograd.grad(rms_norm(y := x.clone().requires_grad_(), weight).square().sum(), y)[0],
    )
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: rms_norm(x, weight), (x,), (x,))


def test_second_derivatives_are_refused():
    x = leaf(4, 8)
    (grad,) = torch.autograd.grad(rms_norm(x, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def results(dtype):
    x, y, weight = (random(s, dtype, i) for i, s in enumerate([(65, 300), (65, 300), (300,)]))
    heads = x[:, :256].reshape(13, 5, 256)
    changed = x.clone()
    add = scaled_index_add(x.view(65, 1, 300).clone(), torch.tensor([4, 4, 1]), y[:3].view(3, 1, 300), weight, 0.3)
    return [
        rms_norm(x, weight),
        rms_norm_add(changed, y, weight),
        changed,
        *ops.rms_norm_backward(y, x, weight),
        *ops.layer_norm_backward(y, x, weight),
        ops.layer_norm(x, weight, weight),
        ops.rotary(heads, adjacents=True),
        ops.rotary(heads),
        ops.silu_gate(x, y),
        ops.softmax(x.view(13, 5, 300), weight, True),
        ops.log_softmax(x, y).clamp(min=-100),
        ops.softmax_backward(y, ops.softmax(x)),
        ops.bias_act_dropout(x, weight, y, "gelu", 0.25, STATE),
        *ops.bias_act_dropout_backward(y, x, weight, "star_relu", 0.25, STATE),
        *ops.silu_bw_fused(x, y, changed),
        add,
        *ops.index_select_cat_backward(y.flatten(), [torch.arange(65) % 7], [9], [300]),
    ]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("isa", ops.cpu_isas())
def test_instruction_sets_agree(isa, dtype, monkeypatch):
    """Forced by name; against the best one: the order of sums and the last bit of exp differ, nothing else."""
    expected = results(dtype)
    monkeypatch.setenv("XFORMERS_CPU_ISA", isa)
    assert os.environ["XFORMERS_CPU_ISA"] == isa
    for result, other in zip(results(dtype), expected, strict=True):
        scale = other.double().abs().max()
        allowed = 4 * TOLERANCE[dtype] * (other.double().abs() + 0.1 * scale)
        assert bool(((result.double() - other.double()).abs() <= allowed).all())


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("XFORMERS_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match="XFORMERS_CPU_ISA is 'sse9', expected one that this processor has"):
        rms_norm(torch.ones(2, 3), None)
