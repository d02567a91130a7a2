"""Outputs and gradients against the formula: dtypes x biases x layouts, then random shapes."""

import pytest
import torch
from attention_inputs import STRIDES, qkv, random
from attention_reference import check_attention
from hypothesis import given
from hypothesis import strategies as st
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import fmha, memory_efficient_attention

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WHOLE_MASKS = {
    "none": None,
    "causal": LowerTriangularMask(),
    "causal_bottom_right": LowerTriangularFromBottomRightMask(),
    "local": LocalAttentionFromBottomRightMask(3, 2),
    "diagonal": LocalAttentionFromBottomRightMask(0, 0),
}
LAYOUTS = {"3d": (), "4d": (3,), "5d": (2, 2)}


def check(mask, query, key, value, **options):
    bias = mask.materialize((query.shape[1], key.shape[1])) if mask is not None else None
    scale = options.pop("scale", None)

    def attend(q, k, v, _):
        return memory_efficient_attention(q, k, v, mask, 0.0, scale)

    check_attention(attend, query, key, value, bias=bias, scale=scale, **options)


MASKS_OF_LAYOUTS = [(name, "3d") for name in ("none", "causal")]
MASKS_OF_LAYOUTS += [(name, layout) for name in WHOLE_MASKS for layout in ("4d", "5d")]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("name, layout", MASKS_OF_LAYOUTS)
def test_masks(name, layout, dtype):
    check(WHOLE_MASKS[name], *qkv(nq=13, nk=37, heads=LAYOUTS[layout], head_dim=40, head_dim_v=24, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("cls", [BlockDiagonalMask, BlockDiagonalCausalMask])
def test_packed_sequences(cls, dtype):
    mask = cls.from_seqlens([5, 0, 17, 1, 3], [9, 4, 17, 0, 2])
    check(mask, *qkv(batch=1, nq=26, nk=32, heads=(2,), head_dim=32, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensor_bias_and_its_gradient(layout, dtype):
    heads = LAYOUTS[layout]
    bias = random((2, *heads, 13, 37), dtype, seed=9, requires_grad=True)
    check_attention(memory_efficient_attention, *qkv(nq=13, nk=37, heads=heads, dtype=dtype), tensor_bias=bias)


@pytest.mark.parametrize("scale", [0.0, 0.5, -0.25, 2.0])
def test_scale(scale):
    check(LowerTriangularMask(), *qkv(dtype=torch.float64), scale=scale)


@pytest.mark.parametrize("mask", [None, LowerTriangularMask()], ids=["full", "causal"])
def test_long_sequences(mask):
    """Many blocks of queries and keys, and more heads than threads."""
    check(mask, *qkv(batch=1, nq=700, nk=700, heads=(3,), head_dim=64, dtype=torch.float32))


def test_one_query_against_many_keys():
    query, key, value = qkv(batch=2, nq=1, nk=5000, heads=(2, 4), head_dim=64, requires_grad=False)
    key, value = (x[:, :, :, :1].expand(-1, -1, -1, 4, -1) for x in (key, value))
    check(None, query, key, value)


def test_lse_and_its_gradient():
    def attend(q, k, v, _):
        return torch.ops.xformers.attention_forward(q, k, v, window_right=0, need_lse=True)[:2]

    query, key, value = qkv(nq=20, nk=9, heads=(2, 2), dtype=torch.float32)
    check_attention(attend, query, key, value, bias=LowerTriangularMask().materialize((20, 9)))


sizes = st.integers(1, 40)


@st.composite
def whole_masks(draw):
    kind = draw(st.sampled_from(["none", "causal", "causal_bottom_right", "local"]))
    if kind == "local":
        return LocalAttentionFromBottomRightMask(draw(st.integers(0, 12)), draw(st.integers(0, 12)))
    return WHOLE_MASKS[kind]


@given(
    mask=whole_masks(),
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from([(1,), (3,), (2, 1), (1, 3)]),
    strides=st.tuples(*[st.sampled_from(STRIDES)] * 3),
    batch=st.integers(1, 3),
    nq=sizes,
    nk=sizes,
    head_dim=st.integers(1, 72),
    head_dim_v=st.integers(1, 72),
    seed=st.integers(0, 1000),
)
def test_random_shapes_and_strides(mask, **sizes_and_strides):
    check(mask, *qkv(**sizes_and_strides))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6),
    causal=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    head_dim=st.sampled_from([3, 16, 33, 64]),
)
def test_random_packed_sequences(lengths, causal, dtype, head_dim):
    nq, nk = ([pair[side] for pair in lengths] for side in (0, 1))
    mask = (BlockDiagonalCausalMask if causal else BlockDiagonalMask).from_seqlens(nq, nk)
    check(mask, *qkv(batch=1, nq=sum(nq), nk=sum(nk), heads=(2,), head_dim=head_dim, dtype=dtype))


def test_forward_only_functions_agree():
    query, key, value = qkv()
    out = memory_efficient_attention(query, key, value, LowerTriangularMask())
    forward = fmha.memory_efficient_attention_forward(query, key, value, LowerTriangularMask())
    with_lse, lse = fmha.memory_efficient_attention_forward_requires_grad(query, key, value, LowerTriangularMask())
    assert torch.equal(out, forward) and torch.equal(out, with_lse)
    assert not forward.requires_grad and not with_lse.requires_grad
    assert lse.shape == (2, 3, 5) and lse.dtype == torch.float32


def test_functional_backward_agrees_with_autograd():
    query, key, value = qkv(heads=(2, 2))
    mask = LowerTriangularFromBottomRightMask()
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(query, key, value, mask, scale=0.3)
    grad = random(out.shape, seed=5)
    expected = torch.autograd.grad(
        memory_efficient_attention(query, key, value, mask, scale=0.3), (query, key, value), grad
    )
    padded = torch.nn.functional.pad(lse, (0, 3), value=torch.inf)
    for rows in (lse, padded):
        got = fmha.memory_efficient_attention_backward(grad, out, rows, query, key, value, mask, scale=0.3)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with torch.no_grad():
        inp = fmha.Inputs(query, key, value, mask, scale=0.3)
        out, context = fmha._memory_efficient_attention_forward_requires_grad(inp, None)
        got = fmha._memory_efficient_attention_backward(context, inp, grad, None)
    assert all(torch.equal(a, b) for a, b in zip((got.dq, got.dk, got.dv), expected, strict=True))
