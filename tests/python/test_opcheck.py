"""torch.library.opcheck: schema, autograd registration, meta functions and tracing of every operator."""

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import assert_equal
from devices import on_each_device  # noqa: F401
from torch.library import opcheck

forward = torch.ops.xformers.attention_forward.default
backward = torch.ops.xformers.attention_backward.default
draw = torch.ops.xformers.draw_philox_state.default

OPTIONS = (
    "plain",
    "causal",
    "local",
    "dropout",
    "lse",
    "packed",
    "padded",
    "overlapping",
    "paged",
    "out_dtype",
    "splits",
)
FORWARD_ONLY = ("need_lse", "out_dtype", "num_splits")


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def options_of(name):
    """Arguments of a call, on the default device."""
    ends = int32(0, 2, 5), int32(0, 3, 7)
    return {
        "plain": {},
        "causal": dict(window_right=0),
        "local": dict(window_left=2, window_right=1, bottom_right=True),
        "dropout": dict(p=0.3, philox_state=torch.tensor([1, 2])),
        "lse": dict(need_lse=True, scale=0.5),
        "packed": dict(cu_seqlens_q=ends[0], cu_seqlens_k=ends[1], window_right=0),
        "padded": dict(cu_seqlens_q=ends[0], cu_seqlens_k=ends[1], seqused_k=int32(1, 4)),
        "overlapping": dict(
            cu_seqlens_q=ends[0],
            cu_seqlens_k=int32(1, 2),
            seqused_k=int32(3, 5),
        ),
        "paged": dict(
            cu_seqlens_q=ends[0],
            seqused_k=int32(3, 4),
            page_table=int32([2, 0], [1, 2]),
            page_size=2,
        ),
        "out_dtype": dict(out_dtype=torch.float64),
        "splits": dict(num_splits=3),
    }[name]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward(name, requires_grad):
    opcheck(forward, tuple(qkv(batch=1, requires_grad=requires_grad)), options_of(name))


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
    options = {key: value for key, value in options_of(name).items() if key not in FORWARD_ONLY}
    out, lse, lse_low = forward(*inputs, **options, need_lse=True)
    assert lse_low.shape == lse.shape and lse_low.dtype == lse.dtype
    for rows in ({}, dict(grad_lse=torch.randn_like(lse), lse_low=lse_low)):
        opcheck(backward, (torch.randn_like(out), *inputs, out, lse), dict(options, **rows))


def test_backward_of_a_bias():
    inputs, bias = qkv(requires_grad=False), random((2, 3, 5, 7), seed=4)
    out, lse, _ = forward(*inputs, bias, need_lse=True)
    opcheck(backward, (torch.randn_like(out), *inputs, out, lse, bias), dict(need_bias_grad=True))


def test_backward_stacked():
    query, key, value = qkv(nk=5, requires_grad=False)
    bias = random((2, 3, 5, 5), seed=4)
    out, lse, _ = forward(query, key, value, bias, need_lse=True)
    stacked = torch.ops.xformers.attention_backward_stacked.default
    for dim in range(4):
        arguments = (torch.randn_like(out), query, key, value, out, lse, bias)
        opcheck(stacked, arguments, dict(need_bias_grad=True, stack_dim=dim))
        dqkv, dbias, *_ = stacked(*arguments, need_bias_grad=True, stack_dim=dim)
        *expected, expected_bias, _, _ = backward(*arguments, need_bias_grad=True)
        assert_equal((dqkv, dbias), (torch.stack(expected, dim), expected_bias))
        elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA)  # a device that stacks with a copy
        assert_equal(stacked.redispatch(elsewhere, *arguments, need_bias_grad=True, stack_dim=dim)[:1], (dqkv,))
    with pytest.raises(ValueError, match=r"stack_dim is 4, expected 0 ... 3"):
        stacked(*arguments, stack_dim=4)
    with pytest.raises(ValueError, match="key.shape"):
        stacked(out, query, key[:, :4], value[:, :4], out, lse, stack_dim=0)


@pytest.mark.parametrize("quantised", ["int4", "fp8"])
def test_forward_of_quantised_keys(quantised):
    query = random((1, 3, 2, 16), torch.bfloat16)
    words = dict(generator=torch.Generator().manual_seed(0), dtype=torch.int32, device="cpu")
    coefficients = torch.tensor([1.0, 0.0], dtype=torch.float16).view(torch.int32)
    if quantised == "int4":
        key = torch.randint(-(2**31), 2**31 - 1, (1, 7, 2, 4), **words)
        key[..., :2] = coefficients.cpu()
        key = key.to(query.device)
        options = {}
    else:
        key = torch.zeros(1, 7, 2, 4, dtype=torch.int32)
        options = dict.fromkeys(("k_scale_shift", "v_scale_shift"), coefficients.expand(1, 7, 2))
    opcheck(forward, (query, key, key), dict(options, need_lse=True))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_merge(requires_grad):
    attn = [random((2, 5, 3, 8), seed=i, requires_grad=requires_grad) for i in range(3)]
    lse = [random((2, 3, 5), seed=9 + i, requires_grad=requires_grad) for i in range(3)]
    opcheck(torch.ops.xformers.merge_attentions.default, (attn, lse))
    if not requires_grad:
        opcheck(torch.ops.xformers.merge_attentions.default, (attn, lse, False, torch.bfloat16))
        arguments = (random((2, 5, 3, 8)), random((2, 3, 5)), attn, lse)
        opcheck(torch.ops.xformers.merge_attentions_backward.default, arguments)
        opcheck(torch.ops.xformers.merge_attentions_backward.default, (arguments[0], None, attn, lse))


def test_draw():
    opcheck(draw, ())
    state = draw()
    assert state.dtype == torch.int64 and state.shape == (2,) and state.device.type == "cpu"
    generator = torch.Generator().manual_seed(5)
    first = draw(generator=generator)
    assert torch.equal(draw(generator=generator.manual_seed(5)), first)
