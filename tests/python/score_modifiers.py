"""Softcap, ALiBi, sinks and a bias of packed sequences by the formula, written out and differentiated by autograd; and
the problems that the tests check against it.

    x = scale * q k;  x = softcap * tanh(x / softcap);  x -= slope * |d(i) - j|;  x += bias;  hidden: -inf;
    softmax over the keys and the sink, whose weight reaches no value
"""

import dataclasses
import math

import torch
from attention_inputs import random
from attention_reference import ULP
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha

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


def check(problem, dtype, seed=0, device="cpu", **choice):
    softcap = choice.pop("softcap", 0.0)
    problem = dataclasses.replace(problem, softcap=softcap)
    leaves = leaves_of(problem, dtype, seed=seed, **choice)
    mask = problem.mask.to(device) if isinstance(problem.mask, ab.VARLEN_BIASES) else problem.mask
    there = {name: x.detach().to(device).requires_grad_() for name, x in leaves.items()}
    out, lse = attend(dataclasses.replace(problem, mask=mask), there)
    incoming = [torch.cos(torch.arange(t.numel(), dtype=FP64)).view(t.shape).to(t) for t in (out, lse)]
    incoming[1] = incoming[1].masked_fill(lse == -math.inf, 0.0)
    grads = torch.autograd.grad([out, lse], list(there.values()), incoming)
    got = {name: x.cpu() for name, x in {"out": out, "lse": lse, **dict(zip(leaves, grads, strict=True))}.items()}
    (exact, sizes), (plain, _) = formula(problem, leaves, FP64), formula(problem, leaves, dtype)
    # In fp64 the formula is no more exact than the kernel: in both, rounding an lse of size x, or the scores that it is
    # of, moves every weight by x roundings. (Of the other dtypes the plain formula's error says so.)
    lses = exact["lse"][exact["lse"].isfinite()].abs()
    roundings = 8 * max(1.0, lses.max().item() if dtype == FP64 and lses.numel() else 1.0)
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
        budget = 2 * plain_error + roundings * unit * max(truth[finite].abs().max(), sizes.get(name, 0.0))
        assert error <= budget, f"{name}: error {error:.3g}, budget {budget:.3g}"


def takes(problem, choice):
    """Whether the layout has a bias of its own rules: the other bands take tensors by other classes."""
    return "bias" not in choice or problem.mask is None or isinstance(problem.mask, ab.VARLEN_BIASES)


def qkv(batch=2, nq=5, nk=7, heads=(HEADS,), dtype=FP64, requires_grad=True):
    shapes = [(batch, n, *heads, 8) for n in (nq, nk, nk)]
    return [random(shape, dtype, seed + 11).requires_grad_(requires_grad) for seed, shape in enumerate(shapes)]


def offsets():
    """Of two sequences of `qkv`'s 5 queries and 7 keys, on the default device."""
    ends = {"cu_seqlens_q": [0, 2, 5], "cu_seqlens_k": [0, 3, 7]}
    return {name: torch.tensor(rows, dtype=torch.int32) for name, rows in ends.items()}
