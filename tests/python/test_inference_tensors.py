"""What an operator keeps beside its inputs (offsets, page tables, random states, masks of booleans, indices) has no
gradient, so it may have been made under torch.inference_mode, as validation and warm-up do."""

import pytest
import torch
from attention_inputs import qkv, random
from attn_bias_cases import CASES
from xformers.triton import dropout

from xformers.ops import index_select_cat, memory_efficient_attention


def results(fn, *inputs):
    torch.manual_seed(3)
    out = fn(*inputs)
    return out, *torch.autograd.grad(out.square().sum(), inputs)


def assert_same(made_outside, made_inside, *inputs):
    expected, got = results(made_outside, *inputs), results(made_inside, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_masks_train(name, p):
    case = CASES[name]
    with torch.inference_mode():
        inside = case.build()
    outside = case.build()
    inputs = qkv(1 if hasattr(outside, "q_seqinfo") else 2, case.queries, case.columns)
    assert_same(
        lambda q, k, v: memory_efficient_attention(q, k, v, outside, p),
        lambda q, k, v: memory_efficient_attention(q, k, v, inside, p),
        *inputs,
    )


def test_boolean_masks_train():
    outside = random((2, 3, 5, 7), seed=4) > 0
    with torch.inference_mode():
        inside = outside.clone()
    assert_same(
        lambda q, k, v: memory_efficient_attention(q, k, v, outside),
        lambda q, k, v: memory_efficient_attention(q, k, v, inside),
        *qkv(),
    )


def test_masks_that_were_used_under_inference_mode_train():
    case = CASES["BlockDiagonalCausalMask"]
    with torch.inference_mode():
        bias = case.build()
        memory_efficient_attention(*qkv(1, case.queries, case.columns, requires_grad=False), bias)
    out = memory_efficient_attention(*qkv(1, case.queries, case.columns), bias)
    out.sum().backward()


def test_random_states_train():
    x, state = random((3, 8), requires_grad=True), torch.tensor([1, 2])
    with torch.inference_mode():
        inside = state.clone()
    op = torch.ops.xformers.bias_act_dropout
    assert_same(lambda x: op(x, None, None, None, 0.5, state), lambda x: op(x, None, None, None, 0.5, inside), x)
    assert dropout(x, 0.5).requires_grad


def test_indices_train():
    source, outside = random((6, 8), requires_grad=True), torch.tensor([4, 0, 3])
    with torch.inference_mode():
        inside = outside.clone()
    assert_same(lambda x: index_select_cat([x], [outside]), lambda x: index_select_cat([x], [inside]), source)
