"""The operators around attention against torch.compile and eager PyTorch, in turns on the same values.

PYTHONPATH=build/release/python .venv/bin/python benchmarks/bench_blocks_compile.py [--device cuda] [--rows 16384]
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional

import xformers  # noqa: F401  (loads the operators)

ops = torch.ops.xformers


def rms_norm(x, weight):
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


def layer_norm(x, weight, bias):
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def silu_gate(x1, x2):
    return functional.silu(x1) * x2


def softmax(x):
    return torch.softmax(x, -1)


def bias_gelu(x, bias):
    return functional.gelu(x + bias, approximate="tanh")


def dropout_residual(x, residual, bias):
    return functional.dropout(x + bias, 0.1) + residual


# name: ours, the plain formula, how many tensors [rows, width] and how many [width] they take
CASES = {
    "rms_norm": (lambda x, w: ops.rms_norm(x, w), rms_norm, 1, 1),
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b), layer_norm, 1, 2),
    "silu_gate": (lambda a, b: ops.silu_gate(a, b), silu_gate, 2, 0),
    "softmax": (lambda x: ops.softmax(x), softmax, 1, 0),
    "bias gelu": (lambda x, b: ops.fused_dropout(x, 0.0, b, "gelu"), bias_gelu, 1, 1),
    "bias dropout residual": (lambda x, r, b: ops.fused_dropout(x, 0.1, b, None, r), dropout_residual, 2, 1),
}


def run(call, inputs, grad):
    out = call(*inputs)
    if grad is not None:
        torch.autograd.grad(out, inputs, grad)
    if out.is_cuda:
        torch.cuda.synchronize()


def seconds_of(sides, inputs, grad, samples):
    """Median seconds of each side; one sample of each per round, in rotating order."""
    times = {name: [] for name in sides}
    for call in sides.values():
        run(call, inputs, grad)
        run(call, inputs, grad)
    names = list(sides)
    for sample in range(samples):
        for i in range(len(names)):
            name = names[(i + sample) % len(names)]
            begin = time.perf_counter()
            run(sides[name], inputs, grad)
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--samples", type=int, default=15)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    print(f"{options.dtype} {options.rows} x {options.width} on {options.device}, torch {torch.__version__}\n")
    print(f"{'operator':<24}{'':<20}{'ours ms':>9}{'compiled':>10}{'eager':>10}{'speedup':>10}")
    for name, (ours, plain, matrices, vectors) in CASES.items():
        shapes = [(options.rows, options.width)] * matrices + [(options.width,)] * vectors
        sides = {"ours": ours, "compiled": torch.compile(plain), "eager": plain}
        for train in (False, True):
            inputs = [torch.randn(s, device=options.device).to(dtype).requires_grad_(train) for s in shapes]
            grad = torch.randn(shapes[0], device=options.device).to(dtype) if train else None
            times = seconds_of(sides, inputs, grad, options.samples)
            what = "forward + backward" if train else "forward"
            row = "".join(f"{1e3 * times[side]:>{10 - (side == 'ours')}.3f}" for side in sides)
            print(f"{name:<24}{what:<20}{row}{times['compiled'] / times['ours']:>9.2f}x", flush=True)


if __name__ == "__main__":
    main()
