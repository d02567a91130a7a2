"""bench_sparse24.py [--rounds N] [--small]   2:4 sparsity on the CPU.

Packing beside a copy of the same matrix, by bytes moved; products with W [4096, 11008], packed, beside PyTorch's dense
ones and beside reading as many bytes as W has packed; MLPs in the proportions of upstream's rows, scaled down, with
three kinds of layers. Sides of a row take turns in one run; times are medians. JSON lines, one a row.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
import xformers.ops.sp24 as sp24
from torch import nn

ops = torch.ops.xformers
MLPS = [(1024, 512, 1536, 512), (512, 1024, 4096, 1024)]  # tokens, in, hidden, out


def medians(rounds, **sides):
    """Milliseconds of each side, alternating, after one call of each."""
    times = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            if round_ > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def report(name, times, **more):
    row = {"name": name, **{f"{side}_ms": round(ms, 3) for side, ms in times.items()}}
    print(json.dumps(row | {key: round(value, 3) for key, value in more.items()}), flush=True)


def packing(shape, dtype, rounds):
    x = torch.randn(shape).to(dtype)
    copy, masks = torch.empty_like(x), ops.sparse24_sparsify_both_ways(x)[4]
    bytes_of = {"clone": 4, "apply": 4.375, "apply_dense": 4.125, "one_way": 3.125}
    sides = {
        "clone": lambda: copy.copy_(x),
        "apply": lambda: ops.sparse24_apply(x, masks),
        "apply_dense": lambda: ops.sparse24_apply_dense_output(x, masks),
        "apply_dense_t": lambda: ops.sparse24_apply_dense_output(x.view(shape[::-1]).t(), masks),
        "one_way": lambda: ops.sparse24_sparsify(x),
    }
    for algo in ("largest_values_greedy", "largest_abs_values_greedy", "causal1122"):
        sides[algo] = lambda algo=algo: ops.sparse24_sparsify_both_ways(x, algo)
    times = medians(rounds, **sides)
    copied = 4 / times["clone"]
    shares = {
        f"{side}_of_copy": bytes_of.get(side, 4.375) / ms / copied for side, ms in times.items() if side != "clone"
    }
    report(f"pack {list(shape)} {dtype}", times, **shares)


def product(tokens, dtype, shape, rounds):
    rows, cols = shape
    weight, x = torch.randn(shape).to(dtype), torch.randn(tokens, cols).to(dtype)
    packed, meta = ops.sparse24_sparsify(weight)
    held = packed.numel() * packed.element_size() + meta.numel() * 2
    as_many = torch.empty(held // 4, dtype=torch.float32).fill_(1)
    times = medians(
        rounds,
        sparse=lambda: ops.sparse24_product(packed, meta, x.t(), rows, cols, None, True, True),
        dense=lambda: F.linear(x, weight),
        read=lambda: as_many.sum(),
    )
    report(
        f"W {list(shape)} {dtype}, {tokens} tokens",
        times,
        speedup=times["dense"] / times["sparse"],
        of_reading=times["read"] / times["sparse"],
    )


def mlps(sizes, dtype, rounds):
    tokens, dim, hidden, out = sizes
    x = torch.randn(tokens, dim, dtype=dtype, requires_grad=True)
    dense = nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, out)).to(dtype)
    layers = {"dense": dense}
    for kind, sparsity in (("w24", "weights"), ("act24", "activations")):
        layers[kind] = sp24.MLP24(dim, hidden, out, sparsity=sparsity, dtype=dtype)

    def forward(layer):
        with torch.no_grad():
            layer(x)

    for name, step in (("fw", forward), ("fw+bw", lambda layer: layer(x).sum().backward())):
        times = medians(rounds, **{kind: lambda layer=layer, step=step: step(layer) for kind, layer in layers.items()})
        report(f"MLP {list(sizes)} {dtype} {name}", times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="small matrices, to see that it runs")
    args = parser.parse_args()
    shapes, weight = [(4096, 8192), (16384, 2048)], (4096, 11008)
    if args.small:
        shapes, weight = [(256, 512)], (256, 512)
    for dtype in (torch.bfloat16, torch.float16):
        for shape in shapes:
            packing(shape, dtype, args.rounds)
        for tokens in (1, 2, 4, 8, 512):
            product(tokens, dtype, weight, args.rounds if tokens < 100 else max(1, args.rounds // 5))
        for sizes in MLPS:
            mlps((16, 32, 64, 32) if args.small else sizes, dtype, max(1, args.rounds // 5))


if __name__ == "__main__":
    main()
