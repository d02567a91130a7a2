"""What is not a rate of attention: merge_attentions, host time, peak memory, and the errors of fp32."""

import torch
from torch.nn.attention import sdpa_kernel

import xformers.ops as xops
from attention_cuda.problem import BACKENDS, Inputs, Problem, ours, sdpa
from attention_cuda.timing import Bench

MERGES = [
    (2, 32, 512, torch.bfloat16),
    (8, 32, 32, torch.bfloat16),
    (16, 128, 1, torch.bfloat16),
    (2, 32, 512, torch.float32),
]


def merge(bench: Bench, parts: int, batch: int, rows: int, dtype) -> dict:
    """GB/s of partial results read and the result written, lse included."""
    heads, d = 16, 128
    shape = (bench.size(batch, 2), bench.size(rows, 8), heads, d)
    outs = [bench.randn(*shape, dtype=dtype) for _ in range(parts)]
    lses = [bench.randn(shape[0], heads, shape[1], dtype=torch.float32) for _ in range(parts)]
    with torch.no_grad():
        merged, lse = xops.fmha.merge_attentions(outs, lses)
        got = bench.medians_ms({"xformers": lambda: xops.fmha.merge_attentions(outs, lses)})["xformers"]
        graph = bench.graph_ms(lambda: xops.fmha.merge_attentions(outs, lses))
    moved = sum(x.nbytes for x in (*outs, *lses, merged, lse))
    name = f"merge {parts} parts B{batch} M{rows} {str(dtype).split('.')[1]}"
    row = {"case": name, "merge": {"ms": got, "gb_per_s": moved / got / 1e6, "graph_gb_per_s": moved / graph / 1e6}}
    print(f"{name:32} {row['merge']['gb_per_s']:.0f}/{row['merge']['graph_gb_per_s']:.0f} GB/s", flush=True)
    return row


def host(bench: Bench) -> dict:
    """Microseconds from the Python call to the launch."""
    q = bench.randn(1, 8, 1, 64)
    leaf = q.detach().requires_grad_()
    q4, mask = q.transpose(1, 2), xops.LowerTriangularMask()
    with torch.no_grad(), sdpa_kernel(BACKENDS["flash"]) if not bench.dry else torch.no_grad():
        flash = bench.host_us(lambda: torch.nn.functional.scaled_dot_product_attention(q4, q4, q4))
    times = {
        "forward": bench.host_us(lambda: xops.memory_efficient_attention(q, q, q)),
        "causal": bench.host_us(lambda: xops.memory_efficient_attention(q, q, q, mask)),
        "causal_new_mask": bench.host_us(lambda: xops.memory_efficient_attention(q, q, q, xops.LowerTriangularMask())),
        "operator": bench.host_us(lambda: torch.ops.xformers.attention_forward(q, q, q)),
        "with_gradients": bench.host_us(lambda: xops.memory_efficient_attention(leaf, leaf, leaf)),
        "sdpa_flash": flash,
    }
    print("host, us per call: " + "  ".join(f"{name} {us:.1f}" for name, us in times.items()), flush=True)
    return times


def memory(bench: Bench) -> list[dict]:
    """Bytes beyond outputs for each (batch, head, query)."""
    rows = []
    for d in (64, 128):
        problem = Problem(f"memory D{d}", 2, 8, 4096, d).shrunk(bench)
        inputs = Inputs(bench, problem)
        forward, gradients = ours(problem, inputs)
        backward = gradients()
        per_row = problem.n * problem.h * problem.s
        row = {"case": problem.name, "head_dim": d}
        row["forward_floats_per_row"] = bench.extra_bytes(forward) / 4 / per_row
        row["backward_floats_per_row"] = bench.extra_bytes(backward) / 4 / per_row
        rows.append(row)
        print(
            f"{problem.name:26} " + "  ".join(f"{k} {v:.1f}" for k, v in row.items() if k.endswith("row")), flush=True
        )
    return rows


def fp32_errors(bench: Bench, d: int) -> dict:
    """Errors of out, dq, dk, dv against the formula in fp64: the largest and the root of the mean square, each in units
    of the same of the exact numbers."""
    problem = Problem(f"fp32 error D{d}", 1, 2, bench.size(1024, 64), d, torch.float32)
    inputs = Inputs(bench, problem)
    exact_leaves = [x.transpose(1, 2).double().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    q, k, v = exact_leaves
    out = (q @ k.transpose(-1, -2) * d**-0.5).softmax(-1) @ v
    exact = [out, *torch.autograd.grad(out, exact_leaves, inputs.dout.transpose(1, 2).double())]
    rival = sdpa(problem, inputs, BACKENDS["math" if bench.dry else "efficient"])
    row = {"case": problem.name, "errors": {"largest": {}, "rms": {}}}
    for name, (forward, gradients) in {"xformers": ours(problem, inputs), "efficient": rival}.items():
        results = [forward(), *gradients()()]
        if name == "xformers":
            results = [x.transpose(1, 2) for x in results]
        pairs = list(zip(results, exact, strict=True))
        row["errors"]["largest"][name] = [((x - y).abs().max() / y.abs().max()).item() for x, y in pairs]
        row["errors"]["rms"][name] = [((x - y).norm() / y.norm()).item() for x, y in pairs]
    cells = [f"{kind}: {n} {max(e):.1e}" for kind, sides in row["errors"].items() for n, e in sides.items()]
    print(f"{problem.name:26} " + "  ".join(cells), flush=True)
    return row
