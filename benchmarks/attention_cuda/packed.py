"""64 packed sequences of random length 64 to 2048, beside as many of their mean length."""

import torch

import xformers.ops as xops
from attention_cuda.problem import BACKWARD_FLOPS
from attention_cuda.timing import Bench

HEADS, DIM = 16, 128


def _gradients(attend, leaves, dout):
    out = attend()
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def times_of(bench: Bench, sides: dict, dout: dict, backward_of=lambda name, fn: fn) -> dict:
    """Of forward without gradients, and of backward_of(name, backward)."""

    def without_gradients(attend):
        with torch.no_grad():
            return attend()

    times = {"forward": bench.medians_ms({n: lambda a=a: without_gradients(a) for n, (a, _) in sides.items()})}
    backward = {}
    for name, (attend, leaves) in sides.items():
        if not isinstance(times["forward"][name], str):
            backward[name] = backward_of(name, _gradients(attend, leaves, dout[name]))
    times["backward"] = bench.medians_ms(backward)
    return times


def _rate(row: dict, direction: str, name: str) -> str:
    got = row[direction].get(name, {})
    return f"{got['tflops']:.0f}" if "tflops" in got else "-"


def run(bench: Bench, causal: bool) -> dict:
    generator = torch.Generator().manual_seed(0)
    count = bench.size(64, 4)
    lengths = torch.randint(bench.size(64, 4), bench.size(2049, 33), (count,), generator=generator).tolist()
    total, mean, longest = sum(lengths), round(sum(lengths) / count), max(lengths)
    q, k, v, dout = (bench.randn(1, total, HEADS, DIM) for _ in range(4))
    ours = [x.detach().requires_grad_() for x in (q, k, v)]
    bias = xops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths)
    bias = bias.make_causal() if causal else bias
    flash = [x[0].detach().requires_grad_() for x in (q, k, v)]
    offsets = torch.tensor([0, *lengths], device=bench.device).cumsum(0).int()
    dense = [bench.randn(count, mean, HEADS, DIM).requires_grad_() for _ in range(3)]
    mask = xops.LowerTriangularMask() if causal else None

    def flash_attention():
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(*flash, offsets, offsets, longest, longest, window_size=(-1, 0 if causal else -1))

    times = times_of(
        bench,
        {
            "xformers": (lambda: xops.memory_efficient_attention(*ours, attn_bias=bias), ours),
            "flash": (flash_attention, flash),
            "dense": (lambda: xops.memory_efficient_attention(*dense, attn_bias=mask), dense),
        },
        {"xformers": dout, "flash": dout[0], "dense": torch.randn_like(dense[0])},
    )
    half = 0.5 if causal else 1
    pairs = {"xformers": sum(n * n for n in lengths), "dense": count * mean * mean}
    pairs["flash"] = pairs["xformers"]
    row = {"case": f"packed 64..2048{' causal' if causal else ''}", "dtype": "bfloat16", "tokens": total, "mean": mean}
    for direction, factor in (("forward", 1), ("backward", BACKWARD_FLOPS)):
        row[direction] = {}
        for name, ms in times[direction].items():
            flops = factor * half * 4 * HEADS * DIM * pairs[name]
            row[direction][name] = {"error": ms} if isinstance(ms, str) else {"ms": ms, "tflops": flops / ms / 1e9}
    cells = [f"{name} {_rate(row, 'forward', name)}/{_rate(row, 'backward', name)}" for name in times["forward"]]
    print(f"{row['case']:26} bfloat16  " + "  ".join(cells), flush=True)
    return row
