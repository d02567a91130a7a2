"""Context parallelism beside one rank that does all, and beside what was predicted.

python benchmarks/parallel/context.py --world-size 2 --seqlen 8192 --json rows.json

Every method with the layout that it chooses; forward, and forward with backward. `of ideal`: the time of one rank over
that of all, divided by their number; the one rank runs while the others wait.
"""

import itertools

import torch
import torch.distributed as dist
from links import line_through, parser_of, rates_of_device, transfers
from processes import on_ranks, seconds_of
from xformers.helpers.training import program, write_json

from xformers.ops import fmha, memory_efficient_attention
from xformers.ops.context_parallel import context_parallel_attention, plan_context_parallel, shard

ab = fmha.attn_bias
# In the order of parallel::Machine.
MACHINE = ("ranks_per_host", "flops", "link_bytes", "network_bytes", "link_latency", "network_latency", "call_seconds")
METHODS = ("all_gather", "ring", "ulysses", "hybrid")


def biases(seqlen):
    window = max(1, seqlen // 16)
    lengths = [seqlen // 8, seqlen // 4, seqlen // 16, seqlen - seqlen // 8 - seqlen // 4 - seqlen // 16]
    return {
        "full": None,
        "causal": ab.LowerTriangularMask(),
        "window": ab.LowerTriangularFromBottomRightLocalAttentionMask(window),
        "documents": ab.BlockDiagonalMask.from_seqlens(lengths).make_causal(),
    }


def numbers_of(machine):
    """parallel::Machine as the library takes it."""
    names = (
        "ranks_per_host",
        "flops",
        "link_bytes",
        "network_bytes",
        "link_latency",
        "network_latency",
        "call_seconds",
    )
    return [float(machine[name]) for name in names]


def measure_machine(device, seqlen, samples):
    shifts = [row for row in transfers(device, 4 << 20, samples) if row["what"] == "shift" and row["works"]]
    latency, rate = line_through(shifts) if shifts else (1e-6, 1e12)
    rates = rates_of_device(device, samples, seqlen)
    network = {"network_bytes": rate, "network_latency": latency}
    return {"ranks_per_host": 1 << 20, **rates, "link_bytes": rate, "link_latency": latency, **network}


def gradients(run, inputs):
    def both():
        out = run()
        torch.autograd.grad(out, inputs, out)

    return both


def measure(options, device):
    group, ranks = dist.group.WORLD, dist.get_world_size()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    machine = measure_machine(device, options.seqlen // ranks, options.samples)
    torch.manual_seed(0)
    heads, kv, dim = options.heads, options.heads_kv, options.head_dim
    sizes = [(1, options.seqlen, kv, heads // kv, dim), *[(1, options.seqlen, kv, 1, dim)] * 2]
    whole = [torch.randn(size, device=device).to(dtype).requires_grad_() for size in sizes]
    workload = [1, heads, kv, dim, whole[0].element_size()]

    def wide(t):
        return t.expand(*t.shape[:3], heads // kv, dim)

    rows = []
    for name, bias in biases(options.seqlen).items():
        if options.masks and name not in options.masks:
            continue

        def one(bias=bias):
            return memory_efficient_attention(whole[0], wide(whole[1]), wide(whole[2]), bias)

        alone = [
            seconds_of(run, device, options.samples, alone=True)
            for run in (torch.no_grad()(one), gradients(one, whole))
        ]
        for method in options.methods or METHODS:
            if method == "hybrid" and not any(ranks % team == 0 for team in range(2, ranks)):
                continue  # no two dimensions
            plan = plan_context_parallel(
                bias, options.seqlen, process_group=group, num_heads=heads, num_heads_kv=kv, head_dim=dim, method=method
            )
            mine = [shard(t.detach(), plan).requires_grad_() for t in whole]

            def spread(mine=mine, plan=plan):
                return context_parallel_attention(mine[0], wide(mine[1]), wide(mine[2]), plan=plan)

            forecast = torch.ops.xformers._context_predict(plan.problem, workload, numbers_of(machine))
            predicted = forecast[0], forecast[len(forecast) // 2]  # forward, backward
            times = [
                seconds_of(run, device, options.samples) for run in (torch.no_grad()(spread), gradients(spread, mine))
            ]
            for step, seconds, single, guess in zip(
                ("forward", "both"), times, alone, itertools.accumulate(predicted), strict=True
            ):
                row = {"mask": name, "method": method, "layout": plan.layout, "head_ranks": plan.head_ranks}
                row |= {"step": step, "seconds": seconds, "one_rank_seconds": single, "predicted_seconds": guess}
                row |= {"of_ideal": single / seconds / ranks, "elements_received": max(plan.elements_received)}
                rows.append(row)
    about = {name: getattr(options, name) for name in ("seqlen", "heads", "heads_kv", "head_dim")}
    return {"ranks": ranks, "device": device.type, "dtype": str(dtype), **about, "machine": machine, "rows": rows}


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--seqlen", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--heads-kv", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--masks", nargs="+", choices=list(biases(64)), help="all by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    options = parser.parse_args()
    report = on_ranks(measure, options)
    print(f"{report['ranks']} ranks, {report['device']}, {report['dtype']}, {options.seqlen} tokens")
    print(
        f"{'mask':<11}{'method':<12}{'layout':<12}{'step':<9}{'ms':>9}{'one rank':>10}{'of ideal':>10}{'predicted':>11}"
    )
    for row in report["rows"]:
        times = [1e3 * row[name] for name in ("seconds", "one_rank_seconds", "predicted_seconds")]
        print(
            f"{row['mask']:<11}{row['method']:<12}{row['layout']:<12}{row['step']:<9}{times[0]:9.2f}{times[1]:10.2f}"
            f"{row['of_ideal']:10.2f}{times[2]:11.2f}"
        )
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    program(main)
