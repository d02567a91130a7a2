"""torch.library.opcheck: schema, autograd registration, meta functions and tracing of every operator."""

import pytest
import torch
from attention_inputs import qkv, random
from torch.library import opcheck

forward = torch.ops.xformers.attention_forward.default
backward = torch.ops.xformers.attention_backward.default
draw = torch.ops.xformers.draw_philox_state.default

OFFSETS = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 3, 7], dtype=torch.int32)
OPTIONS = {
    "plain": {},
    "causal": dict(window_right=0),
    "local": dict(window_left=2, window_right=1, bottom_right=True),
    "dropout": dict(p=0.3, philox_state=torch.tensor([1, 2])),
    "lse": dict(need_lse=True, scale=0.5),
    "packed": dict(cu_seqlens_q=OFFSETS[0], cu_seqlens_k=OFFSETS[1], window_right=0),
    "padded": dict(cu_seqlens_q=OFFSETS[0], cu_seqlens_k=OFFSETS[1], seqused_k=torch.tensor([1, 4], dtype=torch.int32)),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward(name, requires_grad):
    opcheck(forward, tuple(qkv(batch=1, requires_grad=requires_grad)), OPTIONS[name])


@pytest.mark.parametrize("heads", [(), (2, 2)], ids=["3d", "5d"])
def test_forward_layouts(heads):
    opcheck(forward, tuple(qkv(heads=heads, head_dim_v=5)), dict(need_lse=True))


@pytest.mark.parametrize("kind", ["additive", "boolean"])
def test_forward_tensor_bias(kind):
    bias = random((2, 3, 5, 7), seed=4, requires_grad=kind == "additive")
    opcheck(forward, (*qkv(), bias if kind == "additive" else bias > 0))


@pytest.mark.parametrize("name", OPTIONS)
def test_backward(name):
    inputs = qkv(batch=1, requires_grad=False)
    options = {key: value for key, value in OPTIONS[name].items() if key != "need_lse"}
    out, lse = forward(*inputs, **options, need_lse=True)
    opcheck(backward, (torch.randn_like(out), *inputs, out, lse), dict(options, grad_lse=torch.randn_like(lse)))


def test_backward_of_a_bias():
    inputs, bias = qkv(requires_grad=False), random((2, 3, 5, 7), seed=4)
    out, lse = forward(*inputs, bias, need_lse=True)
    opcheck(backward, (torch.randn_like(out), *inputs, out, lse, bias), dict(need_bias_grad=True))


def test_draw():
    opcheck(draw, ())
    state = draw()
    assert state.dtype == torch.int64 and state.shape == (2,) and state.device.type == "cpu"
    generator = torch.Generator().manual_seed(5)
    first = draw(generator=generator)
    assert torch.equal(draw(generator=generator.manual_seed(5)), first)
