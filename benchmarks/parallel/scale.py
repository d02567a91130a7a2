"""What sequence and context parallelism are predicted to reach on 8 to 1024 GPUs: tables, a picture, JSON.

python benchmarks/parallel/scale.py --links links.json --json scale.json --picture scale.png

Nothing here is measured but the rates of links.json (without it: those that the library has for two H200): the events
of the plans that would be executed are simulated. Hosts of 8 with NVLink, one port of 400 Gb/s per GPU between them.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from context import MACHINE, numbers_of
from xformers.helpers.training import program, write_json

TOKENS = (131072, 524288, 1048576, 4194304)
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
HEADS, HEADS_KV, HEAD_DIM = 32, 8, 128
CONTIGUOUS, ZIGZAG = 0, 1  # of parallel::Layout
ALL_GATHER, RING = 0, 1  # of parallel::Method
SCENARIOS = {  # tokens, outer features, inner features times ranks
    "llama_07B_FFN": lambda ranks: (8 * 4096, 4096, 11008),
    "llama_70B_FFN": lambda ranks: (ranks * 2048, 8192, 22016),
}


def plans(ranks, masked):
    """name, layout, method and ranks of a team of what is compared."""
    layout = ZIGZAG if masked else CONTIGUOUS
    yield "all_gather", layout, ALL_GATHER, 1
    yield "ring", layout, RING, 1
    for team in (2, 4, 8, 16, 32):
        if team < ranks and team <= HEADS:
            yield f"hybrid of {team}", layout, RING, team
    if ranks <= HEADS:
        yield "ulysses", CONTIGUOUS, ALL_GATHER, ranks


def context_rows(machine, tokens, gpus, window):
    workload = [1, HEADS, HEADS_KV, HEAD_DIM, 2]
    for seqlen, ranks in itertools.product(tokens, gpus):
        for name, layout, method, team in plans(ranks, window < 0):
            problem = [seqlen, ranks, window, 0, CONTIGUOUS if window >= 0 else layout, method, team]
            forecast = torch.ops.xformers._context_predict(problem, workload, machine)
            forward, backward = forecast[: len(forecast) // 2], forecast[len(forecast) // 2 :]
            seconds, ideal = (forward[i] + backward[i] for i in (0, 1))
            yield {
                "tokens": seqlen, "gpus": ranks, "window": window, "method": name, "seconds": seconds,
                "efficiency": ideal / seconds, "bytes_received": forward[3], "key_bytes": forward[4],
            }  # fmt: skip


def product_rows(machine, product_flops, gpus):
    """Gathers and products, products and sums: overlapped or as one collective, whichever is predicted faster."""
    per_host, _, link, network, link_latency, network_latency, launch = machine
    for (name, sizes), ranks in itertools.product(SCENARIOS.items(), gpus):
        tokens, outer, inner = sizes(ranks)
        near = min(ranks, per_host) - 1  # the others are behind the network
        rate = (ranks - 1) / (near / link + (ranks - 1 - near) / network)
        latency = network_latency if ranks > per_host else link_latency
        for gather in (True, False):
            k, n = (outer, inner / ranks) if gather else (inner / ranks, outer)
            rates = [product_flops, rate, launch, latency]
            sizes_ = [tokens // ranks, int(k), int(n)]
            seconds = torch.ops.xformers._predict_products(gather, ranks, *sizes_, 2, rates)
            ideal = 2 * tokens * int(k) * int(n) / product_flops
            yield {
                "scenario": name, "step": "ag" if gather else "rs", "gpus": ranks, "overlapped_seconds": seconds[0],
                "plain_seconds": seconds[1], "efficiency": ideal / min(seconds),
            }  # fmt: skip


def best_of(rows):
    """The fastest row of each (tokens, GPUs)."""
    best = {}
    for row in rows:
        key = row["tokens"], row["gpus"]
        if key not in best or row["seconds"] < best[key]["seconds"]:
            best[key] = row
    return best


def tables(title, rows):
    best = best_of(rows)
    tokens, gpus = (sorted({key[i] for key in best}) for i in (0, 1))
    lines = [
        f"### {title}",
        "",
        "| tokens | " + " | ".join(f"{n} GPUs" for n in gpus) + " |",
        "|---" * (len(gpus) + 1) + "|",
    ]
    for seqlen in tokens:
        cells = []
        for n in gpus:
            row = best[seqlen, n]
            cells.append(f"{row['efficiency']:.2f} {row['method']}, {row['key_bytes'] / 2**20:.0f} MiB")
        lines.append(f"| {seqlen // 1024}k | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def product_table(rows):
    gpus = sorted({row["gpus"] for row in rows})
    lines = ["### Sequence parallelism", "", "| | " + " | ".join(f"{n} GPUs" for n in gpus) + " |"]
    lines.append("|---" * (len(gpus) + 1) + "|")
    for name, step in sorted({(row["scenario"], row["step"]) for row in rows}):
        mine = [row for row in rows if (row["scenario"], row["step"]) == (name, step)]
        cells = []
        for row in mine:
            overlapped = row["overlapped_seconds"] < row["plain_seconds"]
            cells.append(f"{row['efficiency']:.2f}{' overlapped' if overlapped else ''}")
        lines.append(f"| {name} {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(path, causal):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    best = best_of(causal)
    for seqlen in sorted({key[0] for key in best}):
        gpus = sorted(n for tokens, n in best if tokens == seqlen)
        left.plot(gpus, [best[seqlen, n]["efficiency"] for n in gpus], marker="o", label=f"{seqlen // 1024}k tokens")
    left.set_title("the fastest method")
    longest = max(key[0] for key in best)
    for method in sorted({row["method"] for row in causal}):
        mine = [row for row in causal if row["tokens"] == longest and row["method"] == method]
        right.plot([row["gpus"] for row in mine], [row["efficiency"] for row in mine], marker=".", label=method)
    right.set_title(f"methods, {longest // 1024}k tokens")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="GPUs", ylim=(0, 1.05))
        axes.set_xticks(sorted({key[1] for key in best}), [str(n) for n in sorted({key[1] for key in best})])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_ylabel("predicted efficiency: ideal / predicted")
    figure.suptitle(
        "Predicted, not measured: causal attention, forward and backward, 32 heads, 8 of keys, head_dim 128, bf16"
    )
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", metavar="FILE", help="what links.py wrote; without it the library's own rates")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--window", type=int, default=4096, help="of the table of windows")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    links = json.loads(Path(options.links).read_text()) if options.links else None
    machine = numbers_of(links["machine"]) if links else torch.ops.xformers._context_machine(True)
    product_flops = links["product_flops"] if links else 7.9e14
    causal = list(context_rows(machine, options.tokens, options.gpus, -1))
    windowed = list(context_rows(machine, options.tokens, options.gpus, options.window))
    products = list(product_rows(machine, product_flops, options.gpus))
    print("Predicted, not measured. " + ", ".join(f"{n} {v:.3g}" for n, v in zip(MACHINE, machine, strict=True)) + "\n")
    print(tables("Causal attention: efficiency, method, keys and values of others at a time", causal))
    print(tables(f"A window of {options.window}", windowed))
    print(product_table(products))
    if options.json:
        report = {
            "predicted": True,
            "machine": dict(zip(MACHINE, machine, strict=True)),
            "product_flops": product_flops,
        }
        write_json(options.json, {**report, "causal": causal, "window": windowed, "products": products})
    if options.picture:
        picture(options.picture, causal)


if __name__ == "__main__":
    program(main)
