"""Checkpointing: host time per operator beside PyTorch's contexts, the solver, time and memory over the budget.

python benchmarks/checkpoint/bench_checkpoint.py [--device cuda] [--json FILE]
"""

import argparse
import functools
import json
import random
import statistics
import time

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from xformers.checkpoint import checkpoint, list_operators, selective_checkpoint_wrapper
from xformers.checkpoint._fit import _Step
from xformers.checkpoint._optimal import optimal_policy
from xformers.checkpoint._profile import profile_operators
from xformers.checkpoint._solver import best_choice

from xformers.ops import RMSNorm, SwiGLU, fmha


class Block(nn.Module):
    """Of LLaMA's kind."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, RMSNorm(dim), RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.feed_forward = SwiGLU(dim, hidden, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        h = fmha.memory_efficient_attention(q, k, v, attn_bias=fmha.attn_bias.LowerTriangularMask())
        x = x + self.out(h.flatten(-2))
        return x + self.feed_forward(self.norm2(x))


def seconds(run, device, repeats):
    """Of run(): median."""
    taken = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def host_overhead():
    """Microseconds per operator, forward and backward, of 150 small operators: the best of rounds that take turns."""
    torch.set_num_threads(1)
    weights = [torch.randn(8, 8, requires_grad=True) for _ in range(50)]
    x = torch.randn(4, 8, requires_grad=True)

    def function(x):
        for w in weights:
            x = torch.sin(x @ w) * 1.01
        return x

    def keep(ctx, func, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE

    def torchs(policy):
        context_fn = functools.partial(create_selective_checkpoint_contexts, policy)
        return functools.partial(torch_checkpoint, function, use_reentrant=False, context_fn=context_fn)

    mm = [torch.ops.aten.mm.default]
    ways = {
        "no checkpoint": function,
        "keep everything, PyTorch": torchs(keep),
        "keep everything, ours, the same function": functools.partial(checkpoint, function, policy_fn=keep),
        "keep everything, ours": functools.partial(checkpoint, function, policy_fn=CheckpointPolicy.MUST_SAVE),
        "keep mm, PyTorch": torchs(mm),
        "keep mm, ours": functools.partial(checkpoint, function, policy_fn=mm),
        "keep nothing, PyTorch": torchs([]),
        "keep nothing, ours": functools.partial(checkpoint, function, policy_fn=[]),
    }
    taken = {name: [] for name in ways}
    for _ in range(200):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(x).sum().backward()
            taken[name].append(time.perf_counter() - begin)
    count = len(list_operators(function, x))
    return {name: round(min(t) / count * 1e6, 2) for name, t in taken.items()}


def solver():
    """Seconds for 500 operators: the slowest of ten."""
    worst = {}
    for kind in ("any", "time follows size", "25 equal blocks"):
        taken = []
        for seed in range(10):
            rng = random.Random(seed)
            sizes, values = [rng.randint(1, 1 << 28) for _ in range(500)], [rng.random() for _ in range(500)]
            if kind == "time follows size":
                values = [size * 1e-12 * (1 + 0.1 * rng.random()) for size in sizes]
            if kind == "25 equal blocks":
                sizes, values = 25 * sizes[:20], 25 * values[:20]
            begin = time.perf_counter()
            best_choice(values, sizes, sum(sizes) * rng.choice([0.1, 0.3, 0.5, 0.7]))
            taken.append(time.perf_counter() - begin)
        worst[kind] = round(max(taken), 3)
    return worst


def budgets(device):
    """Step time and measured peak over the budget, and how many forwards it takes to find a policy."""
    dim, heads, hidden, layers, tokens = (4096, 32, 14336, 8, 16384) if device == "cuda" else (256, 4, 768, 4, 2048)
    torch.set_num_threads(torch.get_num_threads() if device == "cuda" else 2)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(layers))).to(device, dtype)
    x = torch.randn(1, tokens, dim, device=device, dtype=dtype, requires_grad=True)
    block = model[0]
    forward = seconds(lambda: block(x), device, 4)
    begin = time.perf_counter()
    operators = profile_operators(block, (x,), {})
    finding = time.perf_counter() - begin
    rows = []
    for budget in (0, 0.1, 0.25, 0.5, 0.75, 1):
        policy = optimal_policy(operators, budget, (x,))
        wrapped = nn.Sequential(
            *(selective_checkpoint_wrapper(b, memory_budget=budget) for b in model)
            if budget in (0, 1)
            else (selective_checkpoint_wrapper(b, policy_fn=policy) for b in model)
        )
        step = _Step(wrapped, (x,), {})
        peak = step.peak()
        with step._without_trace():
            taken = seconds(step.run, device, 5)
        rows.append({"budget": budget, "peak_mb": round(peak / 1e6, 2), "step_ms": round(taken * 1e3, 1),
                     "recomputed_ms": round(layers * policy.report.recomputed_seconds * 1e3, 1)})  # fmt: skip
    low, high = rows[0]["peak_mb"], rows[-1]["peak_mb"]
    for row in rows:
        row["allowed_mb"] = round((low + row["budget"] * (high - low)) * 1.02, 2)
    return {"forwards_to_find_a_policy": round(finding / forward, 1), "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json")
    options = parser.parse_args()
    result = {"torch": torch.__version__, "device": options.device, "host_us_per_operator": host_overhead(),
              "solver_seconds_500_operators": solver(), "budgets": budgets(options.device)}  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        with open(options.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
