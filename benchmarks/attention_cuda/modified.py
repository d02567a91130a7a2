"""What modifiers of scores cost: each beside the plain call of the same shape, and flex_attention compiled."""

import os
from contextlib import contextmanager

import torch

import xformers.ops as xops
from attention_cuda.packed import HEADS, times_of
from attention_cuda.problem import BACKWARD_FLOPS
from attention_cuda.timing import Bench

DIM, CAP = 128, 50.0


@contextmanager
def forced(kernel: str):
    """The kernel behind the faster ones that know no modifiers: like is compared with like."""
    before = os.environ.get("XFORMERS_KERNEL")
    os.environ["XFORMERS_KERNEL"] = kernel
    yield
    if before is None:
        del os.environ["XFORMERS_KERNEL"]
    else:
        os.environ["XFORMERS_KERNEL"] = before


def _forced(bench: Bench, kernel: str, fn):
    if bench.dry:
        return fn

    def call():
        with forced(kernel):
            return fn()

    return call


def _flex(name: str, q, k, v, slopes, sinks, causal: bool):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    s = q.shape[1]
    mods = {
        "alibi": lambda score, b, h, i, j: score - slopes[h] * (i - j).abs(),
        "softcap": lambda score, b, h, i, j: CAP * torch.tanh(score / CAP),
        "sinks": None,
    }
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, s, s) if causal else None
    compiled = torch.compile(flex_attention)

    def attend():
        operands = [x.transpose(1, 2) for x in (q, k, v)]
        if name != "sinks":
            return compiled(*operands, score_mod=mods[name], block_mask=mask).transpose(1, 2)
        out, lse = compiled(*operands, block_mask=mask, return_lse=True)
        return (out * torch.sigmoid(lse - sinks[:, None])[..., None].to(out.dtype)).transpose(1, 2)

    return attend


def _row(bench: Bench, case: str, times: dict, flops: float) -> dict:
    row = {"case": case, "dtype": "bfloat16"}
    for direction, factor in (("forward", 1), ("backward", BACKWARD_FLOPS)):
        row[direction] = {}
        for name, ms in times[direction].items():
            row[direction][name] = (
                {"error": ms} if isinstance(ms, str) else {"ms": ms, "tflops": factor * flops / ms / 1e9}
            )
    both = {name for direction in ("forward", "backward") for name in row[direction]}
    cells = [
        f"{name} "
        + "/".join(f"{row[d].get(name, {}).get('tflops', float('nan')):.0f}" for d in ("forward", "backward"))
        for name in times["forward"]
        if name in both
    ]
    print(f"{case:26} " + "  ".join(cells), flush=True)
    return row


def dense(bench: Bench, causal: bool, rivals: bool) -> dict:
    n, s = bench.size(4, 1), bench.size(4096, 48)
    q, k, v = leaves = [bench.randn(n, s, HEADS, DIM).requires_grad_() for _ in range(3)]
    dout = torch.randn_like(q)
    slopes = torch.tensor([2.0 ** -(8 * (h + 1) / HEADS) for h in range(HEADS)], device=bench.device)
    sinks = torch.zeros(HEADS, device=bench.device)
    mask = xops.LowerTriangularMask() if causal else None
    choices = {
        "plain": ("fwd_sm80", {}),
        "sinks": ("fwd_sm80", {"sinks": sinks}),
        "alibi": ("fwd_sm80_modified", {"alibi_slopes": slopes}),
        "softcap": ("fwd_sm80_modified", {"softcap": CAP}),
        "both": ("fwd_sm80_modified", {"alibi_slopes": slopes, "softcap": CAP}),
    }

    def ours(options):
        return lambda: xops.memory_efficient_attention(q, k, v, attn_bias=mask, **options)

    sides = {name: (_forced(bench, kernel, ours(options)), leaves) for name, (kernel, options) in choices.items()}
    sides["hopper"], sides["hopper sinks"] = ((ours(options), leaves) for options in ({}, {"sinks": sinks}))
    if rivals:
        torch._dynamo.reset()  # or the second call's rows are beyond the limit of recompilations, and run uncompiled
        for name in ("sinks", "alibi", "softcap"):
            sides[f"flex {name}"] = (_flex(name, q, k, v, slopes, sinks, causal), leaves)
    backward = {name: "bwd_sm80" for name in choices}
    times = times_of(
        bench,
        sides,
        dict.fromkeys(sides, dout),
        lambda name, fn: _forced(bench, backward[name], fn) if name in backward else fn,
    )
    flops = 4 * n * HEADS * s * s * DIM * (0.5 if causal else 1)
    return _row(bench, f"modified D128 S4096{' causal' if causal else ''}", times, flops)


def packed_bias(bench: Bench, with_gradient: bool) -> list[dict]:
    """One bias for 64 packed sequences, and one for as many of their mean length."""
    generator = torch.Generator().manual_seed(0)
    count = bench.size(64, 4)
    lengths = torch.randint(bench.size(64, 4), bench.size(2049, 33), (count,), generator=generator).tolist()
    total, mean, longest = sum(lengths), round(sum(lengths) / count / 8) * 8, (max(lengths) + 7) // 8 * 8
    packed = [bench.randn(1, total, HEADS, DIM).requires_grad_() for _ in range(3)]
    dense = [bench.randn(count, mean, HEADS, DIM).requires_grad_() for _ in range(3)]
    shared, own = (bench.randn(1, HEADS, n, n).requires_grad_(with_gradient) for n in (longest, mean))
    mask = xops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths)
    rows = []
    sides = {
        "packed": (
            lambda: xops.memory_efficient_attention(*packed, attn_bias=mask.with_bias(shared)),
            [*packed, *([shared] if with_gradient else [])],
        ),
        "dense": (
            lambda: xops.memory_efficient_attention(*dense, attn_bias=own.expand(count, -1, -1, -1)),
            [*dense, *([own] if with_gradient else [])],
        ),
    }
    douts = {"packed": torch.randn_like(packed[0]), "dense": torch.randn_like(dense[0])}
    times = times_of(bench, sides, douts)
    pairs = {"packed": sum(n * n for n in lengths), "dense": count * mean * mean}
    for name in sides:
        one = {direction: {name: each[name]} for direction, each in times.items() if name in each}
        case = f"{name} bias{' and its gradient' if with_gradient else ''}"
        rows.append(_row(bench, case, {"forward": {}, "backward": {}, **one}, 4 * HEADS * DIM * pairs[name]))
    return rows


def decode(bench: Bench) -> dict:
    batch, keys, kv_heads, heads = bench.size(32, 2), bench.size(8192, 64), 8, 4
    q = bench.randn(batch, 1, kv_heads, heads, DIM)
    k, v = (bench.randn(batch, keys, kv_heads, 1, DIM).expand(-1, -1, -1, heads, -1) for _ in range(2))
    numbers = torch.ones(kv_heads, heads, device=bench.device) / 8
    choices = {
        "plain": {},
        "sinks": {"sinks": numbers},
        "softcap": {"softcap": CAP},
        "alibi": {"alibi_slopes": numbers},
    }

    def attend(options):
        with torch.no_grad():
            return xops.memory_efficient_attention(q, k, v, **options)

    times = bench.medians_ms({name: lambda o=options: attend(o) for name, options in choices.items()})
    row = {"case": f"decode B{batch} {keys} keys", "modified_decode_ms": times}
    print(f"{row['case']:26} " + "  ".join(f"{name} {ms}" for name, ms in times.items()), flush=True)
    return row


def run(bench: Bench, rivals: bool) -> list[dict]:
    rows = [decode(bench)]
    for with_gradient in (False, True):
        rows += packed_bias(bench, with_gradient)
    return rows + [dense(bench, causal, rivals) for causal in (False, True)]
