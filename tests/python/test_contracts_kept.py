"""What a contract promises works: every named operator computes every call that it says it takes, and refuses the rest
with its reasons."""

import pytest
import torch
from attn_bias_cases import CASES, Case
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

FORWARDS = [fmha.cutlass.FwOp, fmha.flash.FwOp, fmha.flash3.FwOp, fmha.triton_splitk.FwOp, fmha.generic.FwOp]
BACKWARDS = [fmha.cutlass.BwOp, fmha.flash.BwOp, fmha.flash3.BwOp, fmha.generic.BwOp]

PAGES = torch.tensor([[1, 0], [2, 3]], dtype=torch.int32)


def in_flash_pages(cls, d):
    """Pages of 256; the first sequence uses 300 keys in pages 1 and 0, the second 3 in page 2. Query i sees the keys up
    to i + d of its sequence."""
    seen = torch.zeros(3, 1024, dtype=torch.bool)
    for query in range(2):
        keys = torch.arange(min(300, query + d[0] + 1))
        seen[query, torch.where(keys < 256, keys + 256, keys - 256)] = True
    seen[2, 512 : 512 + min(3, d[1] + 1)] = True
    return Case(lambda device=None: cls.from_seqlens([2, 1], [300, 3], PAGES, 256), 3, 1024, seen)


# Beside the examples: what flash takes.
CASES_KEPT = {
    "None": Case(lambda device=None: None, 5, 7, torch.ones(5, 7, dtype=torch.bool)),
    **CASES,
    "PagedBlockDiagonalPaddedKeysMask, 256": in_flash_pages(ab.PagedBlockDiagonalPaddedKeysMask, (300, 3)),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask, 256": in_flash_pages(
        ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask, (298, 2)
    ),
}
HEADS = {"heads": (3,), "groups": (2, 3)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def inputs_of(case, heads, dtype):
    generator = torch.Generator().manual_seed(0)
    make = lambda seqlen: torch.randn(1, seqlen, *heads, 64, generator=generator).to(dtype)  # noqa: E731
    keys = case.columns
    return make(case.queries), make(keys), make(keys)


def dense(query, key, value, mask):
    """Attention by the formula; a row that sees no key gives 0. Differentiable."""
    shape = query.shape
    q, k, v = (x.flatten(2, -2).transpose(1, 2) for x in (query, key, value))
    sees = (mask == 0).any(-1, keepdim=True)
    scores = q @ k.transpose(-1, -2) * shape[-1] ** -0.5 + torch.where(sees, mask, 0.0)
    out = scores.softmax(-1) @ v * sees
    return out.transpose(1, 2).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("case", CASES_KEPT.values(), ids=CASES_KEPT)
@pytest.mark.parametrize("op", FORWARDS, ids=lambda op: op.NAME)
def test_forward(op, case, heads, dtype):
    tensors, bias = inputs_of(case, heads, dtype), case.build()
    inp = fmha.Inputs(*tensors, attn_bias=bias)
    if not op.supports(inp):
        with pytest.raises(ValueError) as raised:
            fmha.memory_efficient_attention_forward(*tensors, bias, op=op)
        assert op.NAME in str(raised.value)
        assert all(reason in str(raised.value) for reason in op.not_supported_reasons(inp))
        return
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(*tensors, bias, op=op)
    expected = dense(*(x.double() for x in tensors), case.dense().double())
    torch.testing.assert_close(out.double(), expected, atol=op.ERROR_ATOL[dtype], rtol=op.ERROR_RTOL[dtype])
    packed = isinstance(bias, fmha.attn_bias.VARLEN_BIASES)
    if packed and not op.VARLEN_LSE_PACKED:
        assert lse.shape[0] == len(bias.q_seqinfo.seqstart_py) - 1
    else:
        assert lse.shape[:-1] == (1, *heads) and lse.shape[-1] >= case.queries


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("case", CASES_KEPT.values(), ids=CASES_KEPT)
@pytest.mark.parametrize("op", BACKWARDS, ids=lambda op: op.NAME)
def test_backward(op, case, heads, dtype):
    tensors, bias = [x.requires_grad_() for x in inputs_of(case, heads, dtype)], case.build()
    if not op.supports(fmha.Inputs(*tensors, attn_bias=bias)):
        with pytest.raises(ValueError) as raised:
            memory_efficient_attention(*tensors, bias, op=(None, op))
        assert op.NAME in str(raised.value)
        return
    out = memory_efficient_attention(*tensors, bias, op=(None, op))
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, tensors, grad)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    expected = torch.autograd.grad(dense(*wide, case.dense().double()), wide, grad.double())
    for name, x, y in zip(("dq", "dk", "dv"), got, expected, strict=True):
        atol = {torch.float16: 1e-2, torch.bfloat16: 8e-2, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(x.double(), y, atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}")


SCORES = {"Tensor": lambda scores: scores, "LowerTriangularMaskWithTensorBias": ab.LowerTriangularMask().add_bias}


@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("make", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("pair", list(zip(FORWARDS[:3], BACKWARDS[:3], strict=True)), ids=lambda pair: pair[0].NAME)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_trained_tensor_bias(pair, make, width, dtype):
    """Of any alignment, with its gradient, or refused with a reason."""
    seen = torch.ones(5, width, dtype=torch.bool)
    case = Case(lambda device=None: None, 5, width, seen if make is SCORES["Tensor"] else seen.tril())
    query, key, value = (x.requires_grad_() for x in inputs_of(case, (3,), dtype))
    scores = torch.randn(1, 3, 5, width).to(dtype).requires_grad_()
    leaves = [query, key, value, scores]
    bias = make(scores)
    inp = fmha.Inputs(query, key, value, attn_bias=bias)
    if not all(op.supports(inp) for op in pair):
        assert pair[0] is not fmha.cutlass.FwOp
        with pytest.raises(ValueError, match=pair[0].NAME):
            memory_efficient_attention(query, key, value, bias, op=pair)
        return
    out = memory_efficient_attention(query, key, value, bias, op=pair)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    scores_of = (
        wide[0].transpose(1, 2) @ wide[1].transpose(1, 2).transpose(-1, -2) / 8 + wide[3] + case.dense().double()
    )
    expected = (scores_of.softmax(-1) @ wide[2].transpose(1, 2)).transpose(1, 2)
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 8e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for x, y in zip(got, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        torch.testing.assert_close(x.double(), y, atol=tolerance, rtol=tolerance)
