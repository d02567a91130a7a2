"""One row: a problem, the sides that solve it, and the times of forward and backward."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import xformers.ops as xops
from attention_cuda import fa3
from attention_cuda.timing import Bench

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
MATH_BYTES = 2.2e9  # larger score matrices are not given to the math backend
BACKWARD_FLOPS = 2.5  # times those of forward, where values are as wide as keys


@dataclass
class Problem:
    """[n, s, h, d], values of d_v columns where they are not d; `bias` is [n, h, s, s], with its gradient where asked
    for; `window` keys up to the diagonal."""

    name: str
    n: int
    h: int
    s: int
    d: int
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False
    bias: bool = False
    bias_grad: bool = False
    p: float = 0.0
    kv_heads: int = 0
    window: int = 0
    deterministic: bool = False
    d_v: int = 0

    def shrunk(self, bench: Bench) -> "Problem":
        if not bench.dry:
            return self
        small = dict(self.__dict__, n=min(self.n, 2), s=min(self.s, 48), window=min(self.window, 16))
        if self.kv_heads:
            small.update(h=4, kv_heads=2)
        else:
            small.update(h=min(self.h, 2))
        return Problem(**small)

    @property
    def pairs(self):
        """(query, key) pairs of a head that attend; the diagonal is not counted."""
        if self.window:
            return self.s * self.window - self.window**2 / 2
        return self.s**2 * (0.5 if self.causal else 1)

    def flops(self, direction):
        """Two products of scores and values in forward; backward has three of d columns and two of d_v."""
        d, d_v = self.d, self.d_v or self.d
        columns = d + d_v if direction == "forward" else 3 * d + 2 * d_v
        return 2 * self.n * self.h * self.pairs * columns

    def math_fits(self):
        return self.n * self.h * self.s**2 * self.dtype.itemsize <= MATH_BYTES


class Inputs:
    def __init__(self, bench: Bench, problem: Problem):
        p = problem
        heads = p.kv_heads or p.h
        self.q, self.dout = (bench.randn(p.n, p.s, p.h, d, dtype=p.dtype) for d in (p.d, p.d_v or p.d))
        self.k, self.v = (bench.randn(p.n, p.s, heads, d, dtype=p.dtype) for d in (p.d, p.d_v or p.d))
        self.bias = bench.randn(p.n, p.h, p.s, p.s, dtype=p.dtype) if p.bias else None


def ours(problem: Problem, inputs: Inputs):
    """(forward without gradients, backward of one kept graph, out)."""
    groups = inputs.k.shape[2]
    heads = problem.h // groups
    leaves = [inputs.q, inputs.k, inputs.v]
    if heads > 1:
        leaves = [inputs.q.unflatten(2, (groups, heads)), *(x.unsqueeze(3) for x in leaves[1:])]
    leaves = [x.detach().requires_grad_() for x in leaves]
    q, k, v = leaves
    dout = inputs.dout.view(*q.shape[:-1], -1)
    bias = None
    if problem.window:
        bias = xops.fmha.attn_bias.LocalAttentionFromBottomRightMask(problem.window - 1, 0)
    elif problem.causal:
        bias = xops.LowerTriangularMask()
    elif inputs.bias is not None:
        bias = inputs.bias.detach().requires_grad_(problem.bias_grad)
        if problem.bias_grad:
            leaves = [*leaves, bias]

    def attend():
        if heads > 1:
            return xops.memory_efficient_attention(
                q, k.expand(-1, -1, -1, heads, -1), v.expand(-1, -1, -1, heads, -1), attn_bias=bias, p=problem.p
            )
        return xops.memory_efficient_attention(q, k, v, attn_bias=bias, p=problem.p)

    def forward():
        with torch.no_grad():
            return attend()

    def gradients():
        out = attend()
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return forward, gradients


def sdpa(problem: Problem, inputs: Inputs, backend: SDPBackend):
    leaves = [x.transpose(1, 2).detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    q, k, v = leaves
    dout = inputs.dout.transpose(1, 2)
    bias = None
    if inputs.bias is not None:
        bias = inputs.bias.detach().requires_grad_(problem.bias_grad)
        if problem.bias_grad:
            leaves = [*leaves, bias]

    def attend():
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=bias,
                is_causal=problem.causal,
                dropout_p=problem.p,
                enable_gqa=bool(problem.kv_heads),
            )

    def forward():
        with torch.no_grad():
            return attend()

    def gradients():
        out = attend()
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return forward, gradients


def flash_window(problem: Problem, inputs: Inputs):
    """PyTorch's flash kernels with a window, through its function for packed sequences."""
    from torch.nn.attention.varlen import varlen_attn

    leaves = [x.flatten(0, 1).detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    offsets = torch.arange(problem.n + 1, device=inputs.q.device, dtype=torch.int32) * problem.s

    def attend():
        return varlen_attn(*leaves, offsets, offsets, problem.s, problem.s, window_size=(problem.window - 1, 0))

    def forward():
        with torch.no_grad():
            return attend()

    def gradients():
        out, dout = attend(), inputs.dout.flatten(0, 1)
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return forward, gradients


def sides_of(problem: Problem, inputs: Inputs, names: list[str]):
    for name in names:
        if name == "xformers":
            yield name, ours(problem, inputs)
        elif name == "fa3":
            yield name, fa3.side(problem, inputs)
        elif problem.window:
            if name == "flash":
                yield name, flash_window(problem, inputs)
        elif name != "math" or problem.math_fits():
            yield name, sdpa(problem, inputs, BACKENDS[name])


def run(bench: Bench, problem: Problem, names: list[str], roofs: dict) -> dict:
    """Times and rates of every side, with the clock and power they ran at; prints one line."""
    if "flash" in names and fa3.is_given() and fa3.takes(problem):
        names = [*names, "fa3"]
    problem = problem.shrunk(bench)
    inputs = Inputs(bench, problem)
    sides = dict(sides_of(problem, inputs, names))
    torch.use_deterministic_algorithms(problem.deterministic)
    row = {"case": problem.name, **{k: v for k, v in problem.__dict__.items() if k not in ("name", "dtype")}}
    row["dtype"] = str(problem.dtype).split(".")[1]
    roof = roofs.get(row["dtype"])
    begin, backward = bench.meter.now(), {}
    for name, (_, gradients) in sides.items():
        try:
            backward[name] = gradients()
        except (RuntimeError, ValueError, NotImplementedError):
            pass  # forward says why
    for direction, calls in (("forward", {name: side[0] for name, side in sides.items()}), ("backward", backward)):
        row[direction], flops = {}, problem.flops(direction)
        for name, ms in bench.medians_ms(calls).items():
            if isinstance(ms, str):
                row[direction][name] = {"error": ms}
                continue
            row[direction][name] = {"ms": ms, "tflops": flops / ms / 1e9}
            if roof:
                row[direction][name]["of_gemm"] = flops / ms / 1e9 / roof
    torch.use_deterministic_algorithms(False)
    row.update(bench.meter.since(begin))
    cells = "  ".join(cell(row, name) for name in names)
    print(
        f"{problem.name:26} {row['dtype']:9} {cells}  {row.get('mhz', 0):.0f} MHz {row.get('watts', 0):.0f} W",
        flush=True,
    )
    return row


def cell(row: dict, name: str) -> str:
    def one(direction):
        got = row[direction].get(name, {})
        return f"{got['tflops']:.0f}" if "tflops" in got else "-"

    return f"{name} {one('forward')}/{one('backward')}"


def rate(row: dict | None, direction: str, name: str) -> float | None:
    return ((row or {}).get(direction, {}).get(name, {})).get("tflops")


def time_ms(row: dict | None, direction: str, name: str) -> float | None:
    return ((row or {}).get(direction, {}).get(name, {})).get("ms")
