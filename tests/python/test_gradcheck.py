"""Numerical differentiation in fp64, and what autograd may and may not do."""

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention

attention_forward = torch.ops.xformers.attention_forward
STATE = torch.tensor([3, 4])
MASKS = [
    None,
    LowerTriangularMask(),
    LowerTriangularFromBottomRightMask(),
    LocalAttentionFromBottomRightMask(1, 2),
    BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3]),
]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_out_and_lse(mask, p):
    inputs = qkv(batch=1, nq=5, nk=7, heads=(2,), head_dim=3, head_dim_v=4, dtype=torch.float64)
    operands = mask._operands(torch.device("cpu")) if mask is not None else ()

    def attend(q, k, v):
        out, lse = attention_forward(q, k, v, *operands, p=p, philox_state=STATE, need_lse=True)
        return out, lse

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("heads", [(), (2,), (2, 2)], ids=["3d", "4d", "5d"])
def test_tensor_bias(heads):
    inputs = qkv(batch=2, nq=3, nk=4, heads=heads, head_dim=3, dtype=torch.float64)
    bias = random((2, *heads, 3, 4), torch.float64, seed=5, requires_grad=True)
    assert torch.autograd.gradcheck(memory_efficient_attention, (*inputs, bias))


@pytest.mark.parametrize("index", range(4))
def test_only_one_input_requires_grad(index):
    inputs = [*qkv(nq=3, nk=4, dtype=torch.float64), random((2, 3, 3, 4), torch.float64, seed=5, requires_grad=True)]
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)[index]
    leaves = [x.detach().requires_grad_(i == index) for i, x in enumerate(inputs)]
    memory_efficient_attention(*leaves).sum().backward()
    assert torch.equal(leaves[index].grad, expected)
    assert all(x.grad is None for i, x in enumerate(leaves) if i != index)


def test_nothing_is_recorded_where_nothing_requires_grad():
    query, key, value = qkv(requires_grad=False)
    assert memory_efficient_attention(query, key, value).grad_fn is None
    with torch.no_grad():
        assert memory_efficient_attention(*qkv()).grad_fn is None
    with torch.inference_mode():
        assert memory_efficient_attention(*qkv(requires_grad=False)).grad_fn is None


def test_graph_is_freed_and_kept_as_asked():
    inputs = qkv()
    out = memory_efficient_attention(*inputs)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=False))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), inputs)


def test_change_of_a_saved_input_is_noticed():
    inputs = qkv(requires_grad=False)
    leaf = inputs[0].clone().requires_grad_()
    out = memory_efficient_attention(leaf, *inputs[1:])
    inputs[1].add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()


def test_saved_tensor_hooks():
    inputs = [*qkv(), random((2, 3, 5, 7), seed=5, requires_grad=True)]
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x.clone(), lambda x: x):
        out = memory_efficient_attention(*inputs)
    assert {x.data_ptr() for x in inputs} <= {x.data_ptr() for x in packed}
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True))


def test_double_backward_is_refused():
    inputs = qkv()
    (grad,) = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="xformers::attention_backward is not implemented"):
        grad.sum().backward()


def test_torch_func():
    inputs = qkv(dtype=torch.float64)
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)
    got = torch.func.grad(lambda *args: memory_efficient_attention(*args).sum(), argnums=(0, 1, 2))(
        *(x.detach() for x in inputs)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False))


def test_forward_mode_is_refused():
    inputs = [x.detach() for x in qkv()]
    with pytest.raises(NotImplementedError, match="forward-mode AD is asked for, expected reverse mode"):
        torch.func.jvp(memory_efficient_attention, tuple(inputs), tuple(inputs))
