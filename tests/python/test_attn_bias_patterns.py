"""Every bias class: what `materialize` shows, and what attention does with it, against the rule written down anew."""

import pytest
import torch
from attention_inputs import qkv
from attention_reference import check_attention
from attn_bias_cases import CASES, EXAMPLES
from xformers.ops.fmha.attn_bias import AttentionBias, LowerTriangularMask, LowerTriangularMaskWithTensorBias

from xformers.ops import memory_efficient_attention

EACH = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_materialize(name):
    case = EXAMPLES[name]
    bias = case.build()
    mask = bias.materialize((case.queries, case.keys)).reshape(case.queries, -1)
    assert mask.dtype == torch.float32 and mask.device.type == "cpu" and type(bias).__name__ == name.split(",")[0]
    assert torch.equal(mask.isfinite(), case.seen)
    if not bias.HOLDS_DENSE_TENSOR:
        assert torch.equal(mask, case.dense())


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_materialize_dtype_device_and_leading_dimensions(name, dtype):
    case = CASES[name]
    mask = case.build().materialize((2, 3, case.queries, case.keys), dtype, "cpu")
    assert mask.shape == (2, 3, *case.dense().shape) and mask.dtype == dtype
    assert torch.equal(mask[1, 2], case.dense().to(dtype))


def test_materialize_of_a_tensor_bias():
    bias = torch.randn(2, 3, 4, 5)
    mask = LowerTriangularMaskWithTensorBias(bias).materialize((2, 3, 4, 5))
    assert torch.equal(mask, LowerTriangularMask().materialize((4, 5)) + bias)
    assert torch.equal(mask[..., 1, :2], bias[..., 1, :2]) and (mask[..., 1, 2:] == -torch.inf).all()


@EACH
def test_materialize_refuses_other_totals(name):
    case = CASES[name]
    bias = case.build()
    if not hasattr(bias, "q_seqinfo"):
        return  # fits any shape
    for shape in ((case.queries + 1, case.keys), (case.queries, case.keys - 1)):
        with pytest.raises(ValueError, match=rf"expected \[\.\.\., {case.queries}, {case.keys}\]"):
            bias.materialize(shape)


def test_base_class_has_no_pattern():
    with pytest.raises(NotImplementedError, match="no operator knows what a bias of class AttentionBias hides"):
        AttentionBias().materialize((2, 2))
    assert AttentionBias.HOLDS_DENSE_TENSOR is False and LowerTriangularMask.HOLDS_DENSE_TENSOR is False
    assert LowerTriangularMaskWithTensorBias.HOLDS_DENSE_TENSOR is True


def test_a_class_of_its_own_is_refused():
    """Nobody but its author knows what it hides; taken for no mask at all, it would give wrong numbers."""

    class Mine(AttentionBias):
        def materialize(self, shape, dtype=torch.float32, device="cpu"):
            return LowerTriangularMask().materialize(shape, dtype, device)

    query, key, value = qkv()
    with pytest.raises(NotImplementedError, match="no operator knows what a bias of class Mine hides"):
        memory_efficient_attention(query, key, value, Mine())


def inputs_of(case, heads=(2,), **options):
    batch = 1 if hasattr(case.build(), "q_seqinfo") else 2
    return qkv(batch, case.queries, case.columns, heads, **options)


@EACH
@pytest.mark.parametrize("heads", [(3,), (2, 2)], ids=["4d", "5d"])
def test_attention_and_gradients(name, heads):
    case = CASES[name]
    bias = case.build()
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, bias), *inputs_of(case, heads), bias=case.dense()
    )


@pytest.mark.parametrize("name", [name for name in CASES if "Keys" in name and "Local" not in name])
def test_keys_of_no_sequence_are_never_read(name):
    """NaN in padding, gaps and pages that nobody has."""
    case = CASES[name]
    query, key, value = inputs_of(case, requires_grad=False)
    expected = memory_efficient_attention(query, key, value, case.build())
    unseen = (case.dense() == -torch.inf).all(0)
    key[:, unseen] = torch.nan
    value[:, unseen] = torch.nan
    out = memory_efficient_attention(query, key, value, case.build())
    assert torch.equal(out, expected) and out.isfinite().all()


@pytest.mark.parametrize("heads", [(3,), (2, 2)], ids=["4d", "5d"])
def test_causal_with_tensor_bias(heads):
    bias = torch.randn(2, *heads, 5, 7, requires_grad=True)

    def attend(q, k, v, b):
        return memory_efficient_attention(q, k, v, LowerTriangularMask().add_bias(b))

    # The formula adds bias and mask; where the mask hides, the gradient of the bias is 0.
    query, key, value = qkv(heads=heads)
    hidden = LowerTriangularMask().materialize((5, 7)) == -torch.inf

    def masked(q, k, v, b):
        return memory_efficient_attention(q, k, v, b.masked_fill(hidden, -torch.inf))

    grads = []
    for fn in (attend, masked):
        out = fn(query, key, value, bias)
        grads.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value, bias))))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
