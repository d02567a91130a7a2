"""Rows of the rotary embeddings, SwiGLU, fused dropout and products of tiles."""

import re
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .row import Row, Run

ops = torch.ops.xformers


def forward_sides(functions: dict[str, Callable], inputs: list[tuple]) -> dict[str, list[Callable]]:
    def calls(function):
        def call(values):
            with torch.no_grad():
                return function(*values)

        return [lambda values=values: call(values) for values in inputs]

    return {name: calls(function) for name, function in functions.items()}


def backward_sides(functions: dict[str, Callable], inputs: list[tuple], grads: list) -> dict[str, list[Callable]]:
    """The gradients in all inputs, of kept graphs."""

    def calls(function):
        result = []
        for values, grad in zip(inputs, grads, strict=True):
            leaves = [value.detach().requires_grad_() for value in values]
            out = function(*leaves)
            result.append(lambda o=out, v=leaves, g=grad: torch.autograd.grad(o, v, g, retain_graph=True))
        return result

    return {name: calls(function) for name, function in functions.items()}


def gate_rows(run: Run) -> Iterator[Row]:
    def eager(x1, x2):
        return F.silu(x1) * x2

    functions = {"ours": ops.silu_gate, "eager": eager, **run.compiled(eager)}
    for rows, width in ((16384, 11008), (4440, 4096)):
        rows, width = run.size(rows, 4), run.size(width, 16)
        each = 2.0 * rows * width
        inputs = run.sets(lambda: (run.randn(rows, width), run.randn(rows, width)), 3 * each)  # noqa: B023
        yield Row(f"silu(a) * b {rows} x {width}", 3 * each, forward_sides(functions, inputs))
        grads = [run.randn(rows, width) for _ in inputs]
        yield Row(f"silu(a) * b {rows} x {width} backward", 5 * each, backward_sides(functions, inputs, grads))


def dropout_rows(run: Run) -> Iterator[Row]:
    p = 0.1
    rows, width = run.size(16384, 4), run.size(8192, 16)
    each = 2.0 * rows * width
    bias = run.randn(width)
    for activation in ("gelu", "relu", None):
        plain = {"gelu": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, None: lambda x: x}[activation]

        def ours(x, bias, activation=activation):
            return ops.fused_dropout(x, p, bias, activation)

        def eager(x, bias, plain=plain):
            return F.dropout(plain(x + bias), p)

        functions = {"ours": ours, "eager": eager, **run.compiled(eager)}
        inputs = run.sets(lambda: (run.randn(rows, width), bias), 2 * each)
        name = f"dropout({activation}(x + bias)) {rows} x {width}"
        yield Row(name, 2 * each, forward_sides(functions, inputs))
        grads = [run.randn(rows, width) for _ in inputs]
        tensors = 3 if activation else 2  # x is read again where the activation bends
        yield Row(f"{name} backward", tensors * each, backward_sides(functions, inputs, grads))


def turned(x, sines, cosines):
    re, im = x[..., ::2], x[..., 1::2]
    return torch.stack([re * cosines - im * sines, re * sines + im * cosines], -1).flatten(-2).to(x.dtype)


def plain_rope(xq, xk, xv, cache_k, cache_v, slots, positions):
    dim = xq.shape[-1]
    exponents = -2.0 / dim * torch.arange(dim // 2, device=xq.device, dtype=torch.float32)
    angles = (positions.float()[:, None] * 10000.0**exponents)[None, :, None]
    sines, cosines = angles.sin(), angles.cos()
    cache_k[:, slots] = turned(xk, sines, cosines)
    cache_v[:, slots] = xv
    return turned(xq, sines, cosines)


def rope_row(run: Run, what: str, batch: int, new: int, used: int, room: int) -> Row:
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask as Mask

    from xformers.ops import rope_padded

    batch, new, used, room = run.size(batch, 2), run.size(new, 4), run.size(used, 8), run.size(room, 8)
    tokens, dim, heads, kv_heads = batch * new, 128, 32, 8
    bias = Mask.from_seqlens([new] * batch, room, [used] * batch, device=torch.device(run.device))
    positions = torch.cat([torch.arange(used - new, used, device=run.device)] * batch)
    slots = positions + torch.arange(batch, device=run.device).repeat_interleave(new) * room
    work = 4.0 * tokens * dim * (heads + 2 * kv_heads)

    def make():
        new_tensors = tuple(run.randn(1, tokens, h, dim) for h in (heads, kv_heads, kv_heads))
        return (*new_tensors, *(run.randn(1, batch * room, kv_heads, dim) for _ in range(2)))

    inputs = run.sets(make, work)
    sides = forward_sides({"ours": lambda *tensors: rope_padded(*tensors, bias)}, inputs)
    plain = {"eager": plain_rope, **run.compiled(plain_rope)}
    sides |= forward_sides(plain, [(*values, slots, positions) for values in inputs])
    return Row(f"rope_padded {what} B {batch} T {new} 32/8 heads D 128", work, sides)


def half_split(x):
    exponents = -2.0 / x.shape[-1] * torch.arange(x.shape[-1] // 2, device=x.device, dtype=torch.float32)
    angles = torch.arange(x.shape[-2], device=x.device).float()[:, None] * 10000.0**exponents
    re, im = x.chunk(2, -1)
    return torch.cat([re * angles.cos() - im * angles.sin(), re * angles.sin() + im * angles.cos()], -1).to(x.dtype)


def rope_rows(run: Run) -> Iterator[Row]:
    yield rope_row(run, "prefill", batch=8, new=2048, used=2048, room=2048)
    yield rope_row(run, "decode", batch=64, new=1, used=250, room=256)
    shape = (run.size(4, 2), 32, run.size(4096, 8), 128)
    work = 4.0 * torch.Size(shape).numel()
    functions = {"ours": ops.rotary, "eager": half_split, **run.compiled(half_split)}
    yield Row(f"rotary {list(shape)}", work, forward_sides(functions, run.sets(lambda: (run.randn(*shape),), work)))


def swiglu_row(run: Run, rows: int, width: int, hidden: int, bias: bool) -> Row:
    from xformers.ops import SwiGLU

    rows, width, hidden = run.size(rows, 4), run.size(width, 16), run.size(hidden, 24)
    module = SwiGLU(width, hidden, bias=bias).to(run.device, torch.bfloat16)
    x, grad = run.randn(rows, width).requires_grad_(), run.randn(rows, width)
    leaves = [x, *module.parameters()]

    def apart(x):
        w1, b1, w2, b2, w3, b3 = module._ordered_params()
        return F.linear(F.silu(F.linear(x, w1, b1)) * F.linear(x, w2, b2), w3, b3)

    def packed(x):
        x1, x2 = module.w12(x).chunk(2, -1)
        return module.w3(F.silu(x1) * x2)

    functions = {"ours": module, "eager": apart, "eager packed": packed}
    if run.compile and not run.dry:
        functions |= {"compile": torch.compile(apart), "compile packed": torch.compile(packed)}
    steps = {name: (lambda f=f: torch.autograd.grad(f(x), leaves, grad)) for name, f in functions.items()}
    return Row(
        f"SwiGLU {rows} x ({width} -> {hidden}){' bias' if bias else ''} forward + backward",
        18.0 * rows * width * hidden,
        {name: [step] for name, step in steps.items()},
        unit="TFLOP/s",
        graph=False,
        notes={} if run.dry else {name: peak(step) for name, step in steps.items()},
    )


def swiglu_rows(run: Run) -> Iterator[Row]:
    for bias in (True, False):
        for shape in ((16384, 4096, 11008), (4440, 1536, 4096)):
            yield swiglu_row(run, *shape, bias)


def peak(function: Callable) -> str:
    """Peak of the memory that is allocated during a call, in all."""
    for _ in range(2):  # the first may compile
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"


def split(matrix, heights, widths):
    return [list(row.split(widths, 1)) for row in matrix.split(heights, 0)]


def tiled_rows(run: Run) -> Iterator[Row]:
    from xformers.ops import tiled_matmul

    def per_tile(a, b):
        out = []
        for row in a:
            sums = [torch.mm(row[0], tile) for tile in b[0]]
            for left, tiles in zip(row[1:], b[1:], strict=True):
                for result, tile in zip(sums, tiles, strict=True):
                    result.addmm_(left, tile)
            out.append(sums)
        return out

    m, n, k = run.size(16384, 12), run.size(3072, 12), run.size(8192, 12)
    for tiles_m, tiles_n, tiles_k in ((1, 3, 1), (1, 3, 2), (2, 3, 2)):
        sizes = [[total // count] * count for total, count in ((m, tiles_m), (n, tiles_n), (k, tiles_k))]
        whole = run.randn(m, k), run.randn(k, n)
        views = split(whole[0], sizes[0], sizes[2]), split(whole[1], sizes[2], sizes[1])
        apart = tuple([[tile.clone() for tile in row] for row in grid] for grid in views)
        for kind, (a, b) in (("apart", apart), ("parts of one matrix", views)):
            sides = {"ours": tiled_matmul, "per tile": per_tile}
            calls = forward_sides(sides, [(a, b)]) | {"as one": [lambda w=whole: torch.mm(*w)]}
            name = f"tiled_matmul {tiles_m} x {tiles_n} x {tiles_k} tiles, {kind}"
            yield Row(name, 2.0 * m * n * k, calls, unit="TFLOP/s", graph=False)


def rows(run: Run, only: re.Pattern) -> Iterator[Row]:
    families = {"gate": gate_rows, "rope": rope_rows, "dropout": dropout_rows, "swiglu": swiglu_rows}
    for name, family in (families | {"tiled": tiled_rows}).items():
        if only.search(name):
            yield from family(run)
