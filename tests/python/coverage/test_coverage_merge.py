"""Changes of partial results and their merging, release by release."""

import itertools
import math

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

merge, partial = fmha.merge_attentions, fmha.memory_efficient_attention_partial


def by_hand(attn, lse):
    """The formula, differentiable: attn [n, B, M, (G,) H, K], lse [n, B, (G,) H, M]."""
    weight = (lse - lse.logsumexp(0)).exp().movedim(-1, 2)  # [n, B, M, (G,) H]
    return (weight[..., None] * attn).sum(0), lse.logsumexp(0)


def chunks(n, batch=2, m=5, heads=(3,), head_dim=8, dtype=torch.float64, requires_grad=False):
    attn = random((n, batch, m, *heads, head_dim), dtype, 1)
    lse = random((n, batch, *heads, m), dtype, 2)
    return attn.requires_grad_(requires_grad), lse.requires_grad_(requires_grad)


@pytest.mark.parametrize("heads", [(3,), (2, 3)], ids=["BMHK", "BMGHK"])
@pytest.mark.parametrize("wants", ["out", "lse", "both"])
def test_gradients(wants, heads):
    """0.0.27: gradients of every chunk's out and lse, from a gradient on out, on lse, and on both."""
    attn, lse = chunks(4, heads=heads, requires_grad=True)
    pairs = []
    for fn in (merge, by_hand):
        results = fn(attn, lse)
        used = {"out": results[:1], "lse": results[1:], "both": results}[wants]
        loss = sum((x * random(x.shape, x.dtype, 3 + i)).sum() for i, x in enumerate(used))
        pairs.append(torch.autograd.grad(loss, (attn, lse), allow_unused=True))
    for got, expected in zip(*pairs, strict=True):
        expected = torch.zeros_like(got) if expected is None else expected
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_partial_and_merge_train_as_one(dtype, causal):
    """0.0.27, better: gradients through partial results and their merge are exact, those of query and key included."""
    inputs = qkv(nq=7, nk=20, dtype=dtype)
    whole_bias = ab.LowerTriangularFromBottomRightMask() if causal else None
    expected = memory_efficient_attention(*inputs, whole_bias)
    query, key, value = inputs
    parts = [(slice(0, 9), None), (slice(9, 12), None), (slice(12, 20), whole_bias)]
    results = [partial(query, key[:, rows], value[:, rows], bias) for rows, bias in parts]
    out, _ = merge(*zip(*results, strict=True), output_dtype=dtype)
    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out, expected, **tolerance)
    grad = random(out.shape, dtype, seed=9)
    pairs = [torch.autograd.grad(x, inputs, grad) for x in (out, expected)]
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted, **tolerance)


def test_stacked_or_not():
    """0.0.26: chunks as one tensor, as a list, as a tuple, and mixed."""
    attn, lse = chunks(3)
    expected = merge(attn, lse)
    forms = (lambda x: x, list, tuple)
    for attn_form, lse_form in itertools.product(forms, forms):
        got = merge(attn_form(attn), lse_form(lse))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    parts = [x.clone().requires_grad_() for x in attn]
    out, _ = merge(parts, list(lse))
    assert [x.shape for x in torch.autograd.grad(out.sum(), parts)] == [x.shape for x in parts]


def test_same_chunk_twice():
    """0.0.25: the same chunk twice leaves out alone and adds ln 2 to the lse."""
    attn, lse = chunks(1)
    out, total = merge([attn[0]] * 2, [lse[0]] * 2)
    torch.testing.assert_close(out, attn[0])
    torch.testing.assert_close(total, lse[0] + math.log(2))


@pytest.mark.parametrize("n", range(1, 17))
def test_chunks_of_keys(n):
    """0.0.25: any number of chunks of keys, merged, is attention over all of them."""
    query, key, value = qkv(nq=3, nk=50, heads=(2, 2), requires_grad=False)
    results = [partial(query, k, v) for k, v in zip(key.tensor_split(n, 1), value.tensor_split(n, 1), strict=True)]
    out, lse = merge(*zip(*results, strict=True))
    expected = fmha.memory_efficient_attention_forward_requires_grad(query, key, value)
    torch.testing.assert_close(out, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, expected[1], atol=1e-5, rtol=1e-5)
    formula = by_hand(torch.stack([x[0] for x in results]), torch.stack([x[1] for x in results]))
    torch.testing.assert_close(out, formula[0])


def test_chunks_without_keys():
    """0.0.25, better: a chunk whose lse is -inf counts nothing, whatever its out holds; all of them: 0 and -inf."""
    attn, lse = chunks(3)
    attn[1] = torch.nan
    lse[1] = -torch.inf
    out, total = merge(attn, lse)
    expected = merge(attn[::2], lse[::2])
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(total, expected[1])
    out, total = merge(torch.full_like(attn, torch.nan), torch.full_like(lse, -torch.inf))
    assert (out == 0).all() and (total == -torch.inf).all()


def test_what_is_returned():
    """0.0.25: dtypes of out and lse, and no lse where it is not wanted."""
    attn, lse = chunks(2, dtype=torch.float32)
    out, total = merge(attn.bfloat16(), lse)
    assert out.dtype == torch.bfloat16 and total.dtype == torch.float32
    out, total = merge(attn, lse.double(), output_dtype=torch.float16)
    assert out.dtype == torch.float16 and total.dtype == torch.float64
    assert merge(attn, lse, write_lse=False)[1] is None
    with pytest.raises(ValueError):
        merge(attn.clone().requires_grad_(), lse, write_lse=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda attn, lse: (attn[..., 0], lse),
        lambda attn, lse: (attn, lse[:1]),
        lambda attn, lse: (list(attn), list(lse)[:1]),
        lambda attn, lse: ([attn[0], attn[1][:, :1]], lse),
        lambda attn, lse: (attn, [lse[0], lse[1][..., :1]]),
        lambda attn, lse: (attn, lse[..., :2]),
        lambda attn, lse: (attn[:, :, :, :1], lse),
        lambda attn, lse: (attn[:0], lse[:0]),
        lambda attn, lse: ([], []),
    ],
)
def test_chunks_that_do_not_fit(change):
    """0.0.25: chunks that differ in number or shape are a ValueError."""
    with pytest.raises(ValueError):
        merge(*change(*chunks(2)))


@pytest.mark.parametrize("grouped", [False, True], ids=["BMHK", "BMGHK"])
@pytest.mark.parametrize("op", [None, "flash", "triton_splitk"])
def test_shared_prefix(op, grouped):
    """0.0.25: one prefix shared by all sequences (padded keys) and tails of their own (gappy keys), merged."""
    backend = getattr(fmha, op).FwOp if op else None
    heads, prefix, tails = ((2, 2) if grouped else (4,)), 37, [5, 11, 0]
    query = random((1, 3, *heads, 64), torch.bfloat16, 1)
    shared = [random((1, prefix, *heads, 64), torch.bfloat16, 2 + i) for i in range(2)]
    own = [random((1, sum(tails) + 4, *heads, 64), torch.bfloat16, 4 + i) for i in range(2)]
    prefix_bias = ab.BlockDiagonalPaddedKeysMask.from_seqlens([3], prefix, [prefix])
    tail_bias = ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 1, 1], [1, 7, 18, sum(tails) + 4], tails)
    results = [partial(query, *shared, prefix_bias, op=backend), partial(query, *own, tail_bias, op=backend)]
    assert all(lse.shape == (1, *heads, 3) for _, lse in results)
    out, lse = merge(*zip(*results, strict=True), output_dtype=torch.bfloat16)
    for i, (start, length) in enumerate(zip((1, 7, 18), tails, strict=True)):
        keys = [torch.cat([a, b[:, start : start + length]], 1) for a, b in zip(shared, own, strict=True)]
        expected = fmha.memory_efficient_attention_forward_requires_grad(query[:, i : i + 1], *keys)
        torch.testing.assert_close(out[:, i : i + 1], expected[0], atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(lse[..., i : i + 1].float(), expected[1], atol=1e-3, rtol=0)


def test_many_rows_and_heads():
    """0.0.25, better: no limit on batch x heads, any head_dim."""
    attn, lse = chunks(2, batch=70000, m=1, heads=(1,), head_dim=3, dtype=torch.float32)
    out, total = merge(attn, lse)
    expected = by_hand(attn.double(), lse.double())
    torch.testing.assert_close(out.double(), expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(total.double(), expected[1], atol=1e-6, rtol=1e-5)
