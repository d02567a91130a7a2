"""Softcap, ALiBi, sinks and a bias of packed sequences: against the formula, written out here, and differentiated by
autograd; in every layout, alone and together.

    x = scale * q k;  x = softcap * tanh(x / softcap);  x -= slope * |d(i) - j|;  x += bias;  hidden: -inf;
    softmax over the keys and the sink, whose weight reaches no value
"""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from attention_reference import ULP
from devices import needs_cuda
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

attention_forward = torch.ops.xformers.attention_forward
HEADS, DIM = 3, 16
FP64 = torch.float64


def one_sequence(q, k, v, scale, hidden, softcap, slopes, distance, bias, sinks, probes):
    """(out, lse) of [seqlen, heads, dim]; hidden [seqlen_q, seqlen_k]; bias [heads or 1, seqlen_q, seqlen_k]. probes:
    zeros for every score and every sink, whose gradients are the terms of the sums that dslopes and dsinks are."""
    x = scale * torch.einsum("ihd,jhd->hij", q, k)
    if softcap:
        x = softcap * torch.tanh(x / softcap)
    if slopes is not None:
        x = x - slopes[:, None, None] * distance
    if bias is not None:
        x = x + bias
    x = x + probes[0]
    x = x.masked_fill(hidden, -math.inf)
    if sinks is not None:
        x = torch.cat([x, sinks[:, None, None] + probes[1]], -1)
    blind = (x == -math.inf).all(-1, keepdim=True)
    lse = x.masked_fill(blind, 0.0).logsumexp(-1, keepdim=True).masked_fill(blind, -math.inf)
    weights = (x - lse).masked_fill(blind, -math.inf).exp()
    weights = weights[..., : len(k)]
    return torch.einsum("hij,jhd->ihd", weights, v), lse[..., 0]


def formula(problem, leaves, dtype):
    """out, lse and gradients of the leaves, all in `dtype`; and what the terms of dslopes and dsinks sum up to."""
    x = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
    outs, lses, probes, distances = [], [], [], []
    for b, (q_rows, k_rows) in enumerate(problem.sequences):
        q, k, v = x["query"][0, q_rows], x["key"][0, k_rows], x["value"][0, k_rows]
        d = len(k_rows) - len(q_rows)
        i, j = torch.arange(len(q_rows))[:, None], torch.arange(len(k_rows))[None, :]
        left, right, bottom_right = problem.band
        banded = left >= 0 or right >= 0
        diagonal = i + (d if bottom_right or not banded else 0)
        hidden = ((j > diagonal + right) if right >= 0 else j < 0) | ((j < diagonal - left) if left >= 0 else j < 0)
        per_head = [
            None if (t := x.get(name)) is None else t[b] if t.ndim == 2 else t for name in ("alibi_slopes", "sinks")
        ]
        bias = x.get("bias")
        if bias is not None:
            bias = bias[b if len(bias) > 1 else 0][:, : len(q_rows), : len(k_rows)]
        distances.append((diagonal - j).abs())
        probes.append([torch.zeros(HEADS, len(q), n, dtype=dtype, requires_grad=True) for n in (len(k), 1)])
        out, lse = one_sequence(
            q, k, v, DIM**-0.5, hidden, problem.softcap, per_head[0], distances[b], bias, per_head[1], probes[b]
        )
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs)[None], torch.cat(lses, -1)[None]
    incoming = [torch.cos(torch.arange(t.numel(), dtype=FP64)).view(t.shape).to(t) for t in (out, lse)]
    seen = lse != -math.inf
    total = (out * incoming[0]).sum() + torch.where(seen, lse, 0.0).mul(incoming[1]).sum()
    wanted = [*x.values(), *(t for pair in probes for t in pair)]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    terms = [t.abs() for t in grads[len(x) :]]
    sizes = {
        "alibi_slopes": sum((t * d).sum() for t, d in zip(terms[::2], distances, strict=True)),
        "sinks": sum(t.sum() for t in terms[1::2]),
    }
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(x, grads[: len(x)], strict=True))}, sizes


@dataclasses.dataclass
class Problem:
    mask: object
    sequences: list  # (rows of query, rows of key)
    keys: int
    softcap: float = 0.0

    @property
    def band(self):
        return self.mask._BAND if self.mask is not None else (-1, -1, False)

    @property
    def longest(self):
        return [max(len(rows) for rows in side) for side in zip(*self.sequences, strict=True)]


def rows_of(lengths, starts=None):
    starts = starts or [sum(lengths[:b]) for b in range(len(lengths))]
    return [list(range(s, s + n)) for s, n in zip(starts, lengths, strict=True)]


Q, K = [5, 0, 40, 1], [9, 3, 150, 0]
TABLE = torch.tensor([[2, 0], [3, 1], [4, 5], [1, 0]], dtype=torch.int32)
PAGED_ROWS = [
    [int(TABLE[b, t // 80]) * 80 + t % 80 for t in range(s, s + n)]
    for b, (s, n) in enumerate(zip([2, 0, 1, 0], K, strict=True))
]
PADDED_ROWS = rows_of(K, [0, 150, 300, 450])
STARTS = [4, 1, 0, 0]


def problems():
    packed, causal = ab.BlockDiagonalMask.from_seqlens(Q, K), ab.BlockDiagonalCausalMask.from_seqlens(Q, K)
    wide = ab.BlockDiagonalMask.from_seqlens([5, 2, 40], [9, 3, 150])
    offset = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(Q, 150, K)
    gappy = ab.BlockDiagonalGappyKeysMask.from_seqlens(Q, [*STARTS, 170], K)
    paged = ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(Q, [2, 0, 1, 0], K, TABLE, 80)
    own = (rows_of(Q), rows_of(K))
    wide_rows = (rows_of([5, 2, 40]), rows_of([9, 3, 150]))
    one = ([list(range(20))], [list(range(130))])
    return {
        "dense": Problem(None, list(zip(*one, strict=True)), 130),
        "causal": Problem(ab.LowerTriangularMask(), list(zip(*one, strict=True)), 130),
        "window": Problem(ab.LocalAttentionFromBottomRightMask(30, 4), list(zip(*one, strict=True)), 130),
        "few queries": Problem(None, [([0, 1], list(range(130)))], 130),
        "packed": Problem(packed, list(zip(*own, strict=True)), 162),
        "packed causal": Problem(causal, list(zip(*own, strict=True)), 162),
        "packed window": Problem(
            wide.make_local_attention_from_bottomright(20), list(zip(*wide_rows, strict=True)), 162
        ),
        "padded": Problem(offset, list(zip(rows_of(Q), PADDED_ROWS, strict=True)), 600),
        "gappy, overlapping": Problem(gappy, list(zip(rows_of(Q), rows_of(K, STARTS), strict=True)), 170),
        "paged": Problem(paged, list(zip(rows_of(Q), PAGED_ROWS, strict=True)), 480),
    }


PROBLEMS = problems()
CHOICES = {
    "softcap": dict(softcap=1.5),
    "alibi": dict(alibi="heads"),
    "alibi of sequences": dict(alibi="sequences"),
    "sinks": dict(sinks="heads"),
    "sinks of sequences": dict(sinks="sequences"),
    "bias": dict(bias="all"),
    "bias of sequences": dict(bias="one"),
    "all": dict(softcap=1.5, alibi="heads", sinks="sequences", bias="all"),
    "all shared": dict(softcap=3.0, alibi="sequences", sinks="heads", bias="one"),
}


def random(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64).to(dtype)


def leaves_of(problem, dtype, alibi=None, sinks=None, bias=None, seed=0):
    queries, count = sum(len(q) for q, _ in problem.sequences), len(problem.sequences)
    wide = FP64 if dtype == FP64 else torch.float32
    number = {"heads": (HEADS,), "sequences": (count, HEADS)}
    leaves = {
        "query": random((1, queries, HEADS, DIM), dtype, seed),
        "key": random((1, problem.keys, HEADS, DIM), dtype, seed + 1),
        "value": random((1, problem.keys, HEADS, DIM), dtype, seed + 2),
    }
    if alibi:
        leaves["alibi_slopes"] = random(number[alibi], wide, seed + 3).abs() / 4
    if sinks:
        leaves["sinks"] = random(number[sinks], dtype, seed + 4)
    if bias:
        longest = problem.longest
        packed = isinstance(problem.mask, ab.VARLEN_BIASES)
        room = [longest[0] + 1, longest[1] + 2] if packed else longest
        leaves["bias"] = random((count if bias == "all" else 1, HEADS, *room), dtype, seed + 5)
        leaves["bias"][..., :1, :20] = -math.inf
    return {name: x.requires_grad_() for name, x in leaves.items()}


def attend(problem, leaves, **options):
    """(out, lse) of the library."""
    kwargs = {name: leaves[name] for name in ("alibi_slopes", "sinks") if name in leaves}
    mask, bias = problem.mask, leaves.get("bias")
    if bias is not None:
        mask = bias if mask is None else mask.with_bias(bias)
    operands, paging = fmha._lower.lower(leaves["query"], mask)
    qkv = leaves["query"], leaves["key"], leaves["value"]
    kwargs.update(softcap=problem.softcap, need_lse=True, **paging, **options)
    out, lse, _ = attention_forward(*qkv, *operands, **kwargs)
    return out, lse


def check(problem, dtype, seed=0, **choice):
    softcap = choice.pop("softcap", 0.0)
    problem = dataclasses.replace(problem, softcap=softcap)
    leaves = leaves_of(problem, dtype, seed=seed, **choice)
    out, lse = attend(problem, leaves)
    incoming = [torch.cos(torch.arange(t.numel(), dtype=FP64)).view(t.shape).to(t) for t in (out, lse)]
    incoming[1] = incoming[1].masked_fill(lse == -math.inf, 0.0)
    grads = torch.autograd.grad([out, lse], list(leaves.values()), incoming)
    got = {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}
    (exact, sizes), (plain, _) = formula(problem, leaves, FP64), formula(problem, leaves, dtype)
    for name, x in got.items():
        truth, finite = exact[name], exact[name].isfinite()
        if name in leaves:
            assert x.shape == leaves[name].shape and x.dtype == leaves[name].dtype, name
        assert torch.equal(x[~finite].double(), truth[~finite]), name
        assert x[finite].isfinite().all(), name
        if not finite.any():
            continue
        error = (x.double() - truth)[finite].abs().max()
        plain_error = (plain[name].double() - truth)[finite].abs().max()
        unit = ULP[torch.float32 if name == "lse" and dtype != FP64 else dtype]
        budget = 2 * plain_error + 8 * unit * max(truth[finite].abs().max(), sizes.get(name, 0.0))
        assert error <= budget, f"{name}: error {error:.3g}, budget {budget:.3g}"


def takes(problem, choice):
    """Whether the layout has a bias of its own rules: the other bands take tensors by other classes."""
    return "bias" not in choice or problem.mask is None or isinstance(problem.mask, ab.VARLEN_BIASES)


CASES = [(p, c) for p in PROBLEMS for c in CHOICES if takes(PROBLEMS[p], CHOICES[c])]


@pytest.mark.parametrize("dtype", [FP64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def test_formula(case, dtype):
    check(PROBLEMS[case[0]], dtype, **CHOICES[case[1]])


per_head = st.sampled_from([None, "heads", "sequences"])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PROBLEMS)),
    st.sampled_from([0.0, 0.3, 2.0, 50.0]),
    per_head,
    per_head,
    st.sampled_from([None, "one", "all"]),
    st.sampled_from([FP64, torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_combinations(name, softcap, alibi, sinks, bias, dtype, seed):
    problem = PROBLEMS[name]
    if not takes(problem, {"bias": bias} if bias else {}):
        bias = None
    check(problem, dtype, seed=seed, softcap=softcap, alibi=alibi, sinks=sinks, bias=bias)


def qkv(batch=2, nq=5, nk=7, heads=(HEADS,), dtype=FP64, requires_grad=True):
    shapes = [(batch, n, *heads, 8) for n in (nq, nk, nk)]
    return [random(shape, dtype, seed + 11).requires_grad_(requires_grad) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("heads", [(), (3,), (2, 3)], ids=["3d", "4d", "5d"])
def test_layouts_of_heads(heads):
    """5-D inputs have numbers [groups, heads], 3-D ones a single number; the same as head by head."""
    q, k, v = qkv(heads=heads)
    shape = heads or (1,)
    slopes, sinks = (random(shape, FP64, seed).abs().requires_grad_() for seed in (1, 2))
    options = dict(softcap=2.0, alibi_slopes=slopes, sinks=sinks)
    out = memory_efficient_attention(q, k, v, **options)
    leaves = (q, k, v, slopes, sinks)
    grads = torch.autograd.grad(out.cos().sum(), leaves)
    flat = [x.reshape(x.shape[0], x.shape[1], -1, 8) for x in (q, k, v)]
    options = dict(softcap=2.0, alibi_slopes=slopes.flatten(), sinks=sinks.flatten())
    expected = memory_efficient_attention(*flat, **options)
    expected_grads = torch.autograd.grad(expected.cos().sum(), leaves)
    torch.testing.assert_close(out.flatten(), expected.flatten(), rtol=1e-12, atol=1e-12)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_shared_heads_and_expanded_numbers():
    """One key head for all query heads, and slopes that are an `expand`ed number."""
    q = qkv(nq=2, nk=90)[0]
    key, value = (random((2, 90, 1, 8), FP64, seed).expand(-1, -1, HEADS, -1) for seed in (3, 4))
    slopes = torch.tensor(0.25, dtype=FP64, requires_grad=True)
    options = dict(softcap=2.0, alibi_slopes=slopes.expand(2, HEADS), sinks=torch.zeros(HEADS, dtype=FP64))
    out = memory_efficient_attention(q, key, value, **options)
    full = memory_efficient_attention(q, key.contiguous(), value.contiguous(), **options)
    torch.testing.assert_close(out, full, rtol=1e-12, atol=1e-12)
    numeric = []
    for step in (1e-5, -1e-5):
        moved = dict(options, alibi_slopes=(slopes.detach() + step).expand(2, HEADS))
        numeric.append(memory_efficient_attention(q, key, value, **moved).cos().sum())
    (grad,) = torch.autograd.grad(out.cos().sum(), slopes)
    torch.testing.assert_close(grad, (numeric[0] - numeric[1]) / 2e-5, rtol=1e-6, atol=1e-6)


MODIFIED = {
    "softcap": dict(softcap=1.5),
    "alibi": dict(alibi_slopes=torch.tensor([0.5, 0.1, 0.0], dtype=FP64)),
    "sinks": dict(sinks=torch.tensor([[0.5, -1.0, 2.0]], dtype=FP64)),
}
MODIFIED["all"] = {name: value for choice in MODIFIED.values() for name, value in choice.items()}


@pytest.mark.parametrize("name", MODIFIED)
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(name, packed):
    options = {key: x.clone().requires_grad_() if key != "softcap" else x for key, x in MODIFIED[name].items()}
    tensors = [x for x in options.values() if isinstance(x, torch.Tensor)]
    bias = random((1, 1, 3, 4), FP64, 7).requires_grad_()
    mask = ab.BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3])
    if packed and "sinks" in options:
        options["sinks"] = options["sinks"].expand(2, HEADS)

    def run(q, k, v, bias, *_):
        operands = mask.with_bias(bias).lower(q.device)[:7] if packed else ()
        return attention_forward(q, k, v, *operands, need_lse=True, **options)[:2]

    assert torch.autograd.gradcheck(run, (*qkv(1), bias, *tensors))


OFFSETS = dict(
    cu_seqlens_q=torch.tensor([0, 2, 5], dtype=torch.int32), cu_seqlens_k=torch.tensor([0, 3, 7], dtype=torch.int32)
)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", MODIFIED)
def test_opcheck_forward(name, requires_grad):
    inputs = tuple(qkv(1, requires_grad=requires_grad))
    torch.library.opcheck(attention_forward.default, inputs, dict(MODIFIED[name], need_lse=True))
    bias = random((1, 1, 3, 4), FP64, 7).requires_grad_(requires_grad)
    options = {key: x for key, x in MODIFIED[name].items() if key != "sinks"}
    torch.library.opcheck(attention_forward.default, (*inputs, bias), dict(options, **OFFSETS))


def test_opcheck_backward():
    inputs, options = qkv(1, requires_grad=False), MODIFIED["all"]
    out, lse, _ = attention_forward(*inputs, **options, need_lse=True)
    wanted = dict(options, need_slopes_grad=True, need_sinks_grad=True)
    for arguments_given in (options, wanted):
        arguments = (torch.randn_like(out), *inputs, out, lse)
        torch.library.opcheck(torch.ops.xformers.attention_backward.default, arguments, arguments_given)
    q = inputs[0]
    out, lse, _ = attention_forward(q, q, q, **options, need_lse=True)
    stacked = torch.ops.xformers.attention_backward_stacked.default
    torch.library.opcheck(stacked, (torch.randn_like(out), q, q, q, out, lse), dict(wanted, stack_dim=2))


def results(fn, leaves):
    out = fn(*leaves)
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3])

    def fn(q, k, v, bias, slopes, sinks):
        options = dict(softcap=1.5, alibi_slopes=slopes, sinks=sinks)
        return memory_efficient_attention(q * 2, k, v, mask.with_bias(bias).make_causal(), **options) + 1

    leaves = [*qkv(1), random((1, 1, 3, 4), FP64, 7), random((HEADS,), FP64, 8), random((HEADS,), FP64, 9)]
    leaves = [x.detach().requires_grad_() for x in leaves]
    compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, want in zip(results(compiled, leaves), results(fn, leaves), strict=True):
        assert torch.equal(got, want)


def test_checkpoint_and_autocast():
    leaves = [*qkv(1, dtype=torch.float32), random((1, 1, 3, 4), torch.float32, 7).requires_grad_()]
    leaves += [random((HEADS,), torch.float32, seed).abs().requires_grad_() for seed in (8, 9)]
    mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3])

    def fn(q, k, v, bias, slopes, sinks):
        options = dict(softcap=1.5, alibi_slopes=slopes, sinks=sinks)
        return memory_efficient_attention(q, k, v, mask.with_bias(bias), **options).float()

    again = results(lambda *x: checkpoint(fn, *x, use_reentrant=False), leaves)
    for got, want in zip(again, results(fn, leaves), strict=True):
        assert torch.equal(got, want)
    out = checkpoint(fn, *leaves, use_reentrant=True)  # which knows no autograd.grad
    out.square().sum().backward()
    for leaf, want in zip(leaves, again[1:], strict=True):
        assert torch.equal(leaf.grad, want)
    with torch.autocast("cpu", torch.bfloat16):
        cast, named = (
            results(fn, leaves),
            fmha.memory_efficient_attention_forward(
                *leaves[:3], mask.with_bias(leaves[3]), op=fmha.generic.FwOp, softcap=1.5, sinks=leaves[5].half()
            ),
        )
    assert named.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in cast[1:])
    torch.testing.assert_close(cast[0], fn(*leaves), rtol=2e-2, atol=2e-2)


class LooksOn(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*MODIFIED, "bias"])
def test_modes_that_look_on_lose_nothing(name):
    """Attention shows to them as an operator of old where that can say what is asked for, and here none can."""
    leaves, options = qkv(1, dtype=torch.float32), dict(MODIFIED.get(name, {}))
    options = {key: x.float() if isinstance(x, torch.Tensor) else x for key, x in options.items()}
    mask = None
    if name == "bias":
        mask = ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3]).with_bias(random((1, 1, 3, 4), torch.float32, 7))
    want = results(lambda *x: memory_efficient_attention(*x, mask, **options), leaves)
    with LooksOn():
        got = results(lambda *x: memory_efficient_attention(*x, mask, **options), leaves)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


# ---- sinks ----


def test_a_row_that_sees_nothing_has_its_sink_alone():
    q, k, v = qkv(nq=7, nk=5)
    sinks = torch.tensor([0.5, -math.inf, 3.0], dtype=FP64, requires_grad=True)
    mask = ab.LowerTriangularFromBottomRightMask()  # the first two rows see nothing
    operands = mask.lower(q.device)[:4]
    out, lse, _ = attention_forward(q, k, v, *operands, sinks=sinks, need_lse=True)
    assert (out[:, :2] == 0).all()
    assert torch.equal(lse[:, :, :2].detach(), sinks.detach()[None, :, None].expand(2, -1, 2))
    # Its lse is the sink, whose gradient is then the lse's; the keys have none.
    grads = torch.autograd.grad(lse[:, :, :2].masked_fill(lse[:, :, :2] == -math.inf, 0).sum(), (q, k, v, sinks))
    assert all((g == 0).all() for g in grads[:3])
    assert torch.equal(grads[3], torch.tensor([4.0, 0.0, 4.0], dtype=FP64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP64], ids=str)
def test_merging_a_sink_is_the_same_as_a_sink_in_the_call(dtype):
    q, k, v = qkv(nq=9, nk=60, dtype=dtype)
    sinks = random((HEADS,), torch.float32 if dtype != FP64 else FP64, 3).requires_grad_()
    parts = [fmha.memory_efficient_attention_partial(q, k[:, s], v[:, s]) for s in (slice(0, 20), slice(20, 60))]
    outs, lses = (list(x) for x in zip(*parts, strict=True))
    zeros, sink_lse = torch.zeros_like(outs[0]), sinks[None, :, None].expand_as(lses[0])
    out, lse = fmha.merge_attentions([*outs, zeros], [*lses, sink_lse.to(lses[0].dtype)])
    expected, expected_lse, _ = attention_forward(q, k, v, sinks=sinks, need_lse=True, out_dtype=out.dtype)
    tolerance = dict(rtol=4 * ULP[dtype], atol=4 * ULP[dtype])
    torch.testing.assert_close(out, expected, **tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
    grads = torch.autograd.grad(out.cos().sum(), (q, k, v, sinks))
    wanted = torch.autograd.grad(expected.cos().sum(), (q, k, v, sinks))
    loose = dict(rtol=64 * ULP[dtype], atol=16 * ULP[dtype])
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, **loose)


def test_a_sink_of_0_is_softmax_off_by_one():
    q, k, v = qkv()
    x = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    weights = x.exp() / (1 + x.exp().sum(-1, keepdim=True))
    expected = torch.einsum("bhij,bjhd->bihd", weights, v)
    out = memory_efficient_attention(q, k, v, sinks=torch.zeros(HEADS, dtype=FP64))
    torch.testing.assert_close(out, expected)
    out = memory_efficient_attention(q, k, v, sinks=torch.full((HEADS,), -math.inf, dtype=FP64))
    assert torch.equal(out, memory_efficient_attention(q, k, v))


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_nan_stays_in_its_head(name):
    q, k, v = qkv()
    numbers = torch.zeros(HEADS, dtype=FP64)
    clean = memory_efficient_attention(q, k, v, **{name: numbers.clone()})
    numbers[1] = math.nan
    out = memory_efficient_attention(q, k, v, **{name: numbers})
    assert out[:, :, 1].isnan().all()
    assert torch.equal(out[:, :, ::2], clean[:, :, ::2])


# ---- ALiBi without a tensor of its size, and softcap at the ends of its range ----


def test_alibi_of_a_long_sequence_makes_no_tensor_of_its_square():
    """65536 x 65536 scores of one head would be 17 GB."""
    x = torch.randn(1, 65536, 1, 8)
    mask = ab.LocalAttentionFromBottomRightMask(40, 0)
    out = memory_efficient_attention(x, x, x, mask, alibi_slopes=torch.tensor([0.5]))
    rows = slice(65000, 65001)
    keys = slice(65000 - 40, 65001)
    distance = torch.arange(40, -1, -1)
    weights = ((x[0, rows, 0] @ x[0, keys, 0].T) * 8**-0.5 - 0.5 * distance).softmax(-1)
    torch.testing.assert_close(out[0, rows, 0], weights @ x[0, keys, 0])


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 1.0, 10.0, 1e4])
def test_softcap_of_scores_of_every_size(size):
    check_size = random((1, 20, HEADS, DIM), torch.float32, 1) * size
    problem = Problem(None, [(list(range(20)), list(range(130)))], 130, softcap=1.0)
    leaves = leaves_of(problem, torch.float32)
    leaves["query"] = check_size.requires_grad_()
    out, _ = attend(problem, leaves)
    (exact, _), (plain, _) = formula(problem, leaves, FP64), formula(problem, leaves, torch.float32)
    error, plain_error = ((x - exact["out"]).abs().max() for x in (out, plain["out"]))
    assert error <= 2 * plain_error + 4 * ULP[torch.float32] * exact["out"].abs().max()


# ---- a bias of packed sequences ----

ALL_MASKS = {
    "BlockDiagonalMask": lambda: ab.BlockDiagonalMask.from_seqlens([2, 3], [4, 3]),
    "BlockDiagonalCausalMask": lambda: ab.BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3]),
    "BlockDiagonalCausalFromBottomRightMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_causal_from_bottomright(),
    "BlockDiagonalCausalLocalAttentionMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_local_attention(2),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": lambda: ab.BlockDiagonalMask.from_seqlens(
        [2, 3], [4, 3]
    ).make_local_attention_from_bottomright(2),
    "BlockDiagonalPaddedKeysMask": lambda: ab.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 5, [4, 3]),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        [2, 3], 5, [4, 3]
    ),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": lambda: (
        ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([2, 3], 5, [4, 3], 2)
    ),
    "BlockDiagonalGappyKeysMask": lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([2, 3], [1, 5, 10], [4, 3]),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": lambda: ab.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
        [2, 3], [1, 5, 10], [4, 3]
    ),
    "PagedBlockDiagonalPaddedKeysMask": lambda: ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [2, 3], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
    ),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": lambda: (
        ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [2, 3], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
        )
    ),
    "PagedBlockDiagonalGappyKeysMask": lambda: ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
        [2, 3], [0, 1], [4, 3], torch.tensor([[1, 0], [2, 3]], dtype=torch.int32), 2
    ),
}
SHARED = random((1, HEADS, 3, 4), FP64, 5)


def test_every_class_of_sequences_is_here():
    classes = {name for name in ab.__all__ if isinstance(getattr(ab, name), type)}
    classes = {name for name in classes if issubclass(getattr(ab, name), ab.VARLEN_BIASES)}
    assert classes == set(ALL_MASKS)


@pytest.mark.parametrize("name", ALL_MASKS)
def test_with_bias_is_kept(name):
    """By copies, pickles, `to`, `replace` and `materialize`; the mask that it was made from stays as it is."""
    mask = ALL_MASKS[name]()
    biased = mask.with_bias(SHARED)
    assert type(biased) is type(mask) and mask._scores is None
    for other in (
        biased,
        copy.deepcopy(biased),
        pickle.loads(pickle.dumps(biased)),
        biased.to("cpu"),
        dataclasses.replace(biased),
    ):
        assert type(other) is type(mask) and torch.equal(other._scores, SHARED)
        assert other._BAND == mask._BAND
    paged = hasattr(mask, "block_tables")
    keys = 8 if paged else (10 if "Padded" in name or "Gappy" in name else 7)
    shown, plain = (m.materialize((1, HEADS, 5, keys), FP64) for m in (biased, mask))
    assert torch.equal(shown == -math.inf, plain == -math.inf)
    # What is shown is what attention adds.
    q, k, v = qkv(1, nk=8 if paged else keys, requires_grad=False)
    expected = memory_efficient_attention(q, k, v, shown.contiguous())
    torch.testing.assert_close(memory_efficient_attention(q, k, v, biased), expected)
    with pytest.raises(ValueError, match="attn_bias: the tensor to add has shape"):
        mask.with_bias(SHARED[:, :, :2])
    assert torch.equal(biased.with_bias(SHARED * 2)._scores, SHARED * 2)


def test_with_bias_survives_other_bands_and_pages():
    packed = ALL_MASKS["BlockDiagonalMask"]().with_bias(SHARED)
    for made in (
        packed.make_causal(),
        packed.make_causal_from_bottomright(),
        packed.make_local_attention(2),
        packed.make_local_attention_from_bottomright(2),
    ):
        assert made._scores is SHARED
    table = torch.tensor([[1, 0, 4], [2, 3, 5]], dtype=torch.int32)
    padded = ALL_MASKS["BlockDiagonalPaddedKeysMask"]().with_bias(SHARED)
    assert padded.make_paged(table, 2, ab.PagedBlockDiagonalPaddedKeysMask)._scores is SHARED
    gappy = ALL_MASKS["BlockDiagonalGappyKeysMask"]().with_bias(SHARED)
    assert gappy.make_paged(table, 2, 5, ab.PagedBlockDiagonalGappyKeysMask)._scores is SHARED
    x = torch.randn(1, 5, 2)
    assert [part.shape[1] for part in packed.split_queries(x)] == [2, 3]


def test_the_gradient_of_a_shared_bias_is_a_sum_over_sequences():
    """Against a loop of calls, one per sequence; heads shared too."""
    lengths = [70, 3, 200, 131]
    mask = ab.BlockDiagonalCausalMask.from_seqlens(lengths)
    q, k, v = (random((1, sum(lengths), HEADS, 8), FP64, seed) for seed in range(3))
    for heads in (HEADS, 1):
        bias = random((1, heads, 200, 200), FP64, 6).requires_grad_()
        (got,) = torch.autograd.grad(memory_efficient_attention(q, k, v, mask.with_bias(bias)).cos().sum(), bias)
        outs = []
        for qs, ks, vs in zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True):
            n = qs.shape[1]
            own = ab.LowerTriangularMask().add_bias(bias[:, :, :n, :n].expand(1, HEADS, n, n))
            outs.append(memory_efficient_attention(qs, ks, vs, own))
        (want,) = torch.autograd.grad(sum(out.cos().sum() for out in outs), bias)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, HEADS), (1, HEADS), (2, 1), (1, 1)], ids=str)
def test_strides_of_a_bias(shape):
    """`expand`ed over sequences, heads, queries; a slice of a wider one; transposed; booleans."""
    mask = ALL_MASKS["BlockDiagonalMask"]()
    q, k, v = qkv(1, requires_grad=False)
    full = random((*shape, 3, 4), FP64, 5)
    wide = torch.full((*shape, 5, 9), math.nan, dtype=FP64)
    wide[..., 1:4, 2:6] = full
    expected = memory_efficient_attention(q, k, v, mask.with_bias(full))
    for bias in (
        full.expand(2, HEADS, 3, 4),
        wide[..., 1:4, 2:6],
        full.transpose(-1, -2).contiguous().transpose(-1, -2),
    ):
        assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(bias)), expected)
    row = full[..., :1, :].expand(*shape, 3, 4)
    same = memory_efficient_attention(q, k, v, mask.with_bias(row.contiguous()))
    assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(row)), same)
    hidden = torch.zeros_like(full).masked_fill(full < 0, -math.inf)
    same = memory_efficient_attention(q, k, v, mask.with_bias(hidden))
    assert torch.equal(memory_efficient_attention(q, k, v, mask.with_bias(full >= 0)), same)


# ---- contracts of named operators, and bad input ----


def test_named_operators():
    """generic takes all; flash and flash3 cap and tilt; the rest says why not."""
    q, k, v = qkv(2, 64, 64, dtype=torch.bfloat16, requires_grad=False)
    q, k, v = (torch.randn(2, 64, HEADS, 64).bfloat16() for _ in range(3))
    slopes, sinks = torch.ones(HEADS), torch.zeros(HEADS)
    packed = ab.BlockDiagonalMask.from_seqlens([30, 34]).with_bias(torch.zeros(1, 1, 34, 34).bfloat16())
    given = {
        "softcap": fmha.Inputs(q, k, v, softcap=20.0),
        "alibi_slopes": fmha.Inputs(q, k, v, alibi_slopes=slopes),
        "sinks": fmha.Inputs(q, k, v, sinks=sinks),
        "attn_bias": fmha.Inputs(q[:1], k[:1], v[:1], packed),
    }
    for op in (*fmha.ALL_FW_OPS, *fmha.ALL_BW_OPS):
        generic, flash = op._KEY.startswith("generic"), op._KEY.startswith("fa")
        for name, inp in given.items():
            takes_it = generic or (flash and name in ("softcap", "alibi_slopes"))
            reasons = [reason for reason in op.not_supported_reasons(inp) if reason.startswith(name)]
            assert bool(reasons) != takes_it, (op, name, reasons)
    out = memory_efficient_attention(q, k, v, op=(fmha.flash.FwOp, None), softcap=20.0, alibi_slopes=slopes)
    assert torch.equal(out, memory_efficient_attention(q, k, v, softcap=20.0, alibi_slopes=slopes))
    with pytest.raises(ValueError, match="sinks is given, expected None: this operator has none"):
        memory_efficient_attention(q, k, v, op=(fmha.cutlass.FwOp, None), sinks=sinks)
    with pytest.raises(ValueError, match="alibi_slopes.requires_grad is True"):
        trained = slopes.clone().requires_grad_()
        memory_efficient_attention(q, k, v, op=(fmha.flash.FwOp, fmha.flash.BwOp), alibi_slopes=trained)


def test_functions_by_hand():
    q, k, v = qkv(requires_grad=True)
    options = dict(softcap=1.5, alibi_slopes=torch.rand(HEADS, dtype=FP64), sinks=torch.rand(HEADS, dtype=FP64))
    out = memory_efficient_attention(q, k, v, **options)
    expected = torch.autograd.grad(out.cos().sum(), (q, k, v))
    assert torch.equal(fmha.memory_efficient_attention_forward(q, k, v, **options), out)
    again, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, **options)
    incoming = -again.sin()
    got = fmha.memory_efficient_attention_backward(incoming, again, lse, q, k, v, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


WRONG = [
    (dict(softcap=-1.0), r"softcap is -1.0+, expected 0 \(off\) or a finite number above it"),
    (dict(softcap=math.nan), "softcap is nan"),
    (dict(softcap=math.inf), "softcap is inf"),
    (dict(alibi_slopes=torch.ones(2)), r"alibi_slopes.shape is \[2\], expected \[3\], one per head, or \[2, 3\]"),
    (dict(alibi_slopes=torch.ones(1, 3)), r"alibi_slopes.shape is \[1, 3\]"),
    (dict(alibi_slopes=torch.ones(3).half()), "alibi_slopes.dtype is fp16, expected fp32"),
    (dict(alibi_slopes=torch.ones(3, device="meta")), "alibi_slopes.device is meta, expected cpu"),
    (dict(sinks=torch.ones(4)), r"sinks.shape is \[4\]"),
    (dict(sinks=torch.ones(3).bfloat16()), "sinks.dtype is bf16, expected fp32, or fp32 like the query's"),
    (dict(sinks=torch.ones(3, device="meta")), "sinks.device is meta, expected cpu"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_bad_input(options, message):
    q, k, v = qkv(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        memory_efficient_attention(q, k, v, **options)
    with pytest.raises(ValueError, match=message):
        fmha.memory_efficient_attention_forward(q, k, v, op=fmha.generic.FwOp, **options)


def test_bad_packed_bias():
    q, k, v = qkv(1, dtype=torch.float32)
    offsets = list(OFFSETS.values())
    for shape in ((1, HEADS, 3, 3), (1, HEADS, 2, 4), (2, HEADS, 2, 4)):
        with pytest.raises(ValueError, match=r"attn_bias.shape is .*, expected room for the 3 queries and 4 keys"):
            attention_forward(q, k, v, torch.zeros(shape), -1, -1, False, *offsets)
    for shape in ((3, HEADS, 3, 4), (1, 2, 3, 4), (HEADS, 3, 4), (1, 1, 1, 3, 4)):
        with pytest.raises(ValueError, match="attn_bias.shape is .*, expected .2 or 1, 3 or 1, longest seqlen_q"):
            attention_forward(q, k, v, torch.zeros(shape), -1, -1, False, *offsets)
    with pytest.raises(ValueError, match="attn_bias.dtype is fp64"):
        attention_forward(q, k, v, torch.zeros(1, 1, 3, 4).double(), -1, -1, False, *offsets)
    # A cache that has grown past the bias since it was made.
    mask = ALL_MASKS["BlockDiagonalPaddedKeysMask"]().with_bias(SHARED.float())
    mask.k_seqinfo.seqlen.fill_(5)
    with pytest.raises(ValueError, match="expected room for the 2 queries and 5 keys of sequence 0"):
        memory_efficient_attention(q, *(torch.zeros(1, 10, HEADS, 8) for _ in "kv"), mask)


def test_partial_attention_refuses_sinks():
    q, k, v = qkv(dtype=torch.float32)
    with pytest.raises(
        ValueError, match="sinks is a tensor .* beside partial attention, expected None.  Fix: add them"
    ):
        fmha.memory_efficient_attention_partial(q, k, v, sinks=torch.zeros(HEADS))
    out, lse = fmha.memory_efficient_attention_partial(q, k, v, softcap=2.0, alibi_slopes=torch.ones(HEADS))
    want, want_lse, _ = attention_forward(q, k, v, softcap=2.0, alibi_slopes=torch.ones(HEADS), need_lse=True)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)


@needs_cuda
@pytest.mark.parametrize("name", ["softcap", "alibi_slopes", "sinks", "attn_bias of packed sequences"])
def test_cuda_says_why_not(name):
    q = torch.empty(1, 5, HEADS, 8, device="cuda")
    offsets = [x.cuda() for x in OFFSETS.values()]
    calls = {
        "softcap": lambda: attention_forward(q, q, q, softcap=1.0),
        "alibi_slopes": lambda: attention_forward(q, q, q, alibi_slopes=torch.empty(HEADS, device="cuda")),
        "sinks": lambda: attention_forward(q, q, q, sinks=torch.empty(HEADS, device="cuda")),
        "attn_bias of packed sequences": lambda: attention_forward(
            q, q, q, torch.empty(1, 1, 3, 4, device="cuda"), -1, -1, False, *offsets
        ),
    }
    with pytest.raises(ValueError, match=f"{name} is given beside tensors on cuda:0, expected none, or tensors on"):
        calls[name]()
