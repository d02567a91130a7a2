"""Attention on a GPU against every SDPA backend of PyTorch, on the same inputs in the same run.

    python benchmarks/bench_attention_cuda.py --library <build>/lib/libxformers.so --out results.json [--quick]

Prints and records medians as TFLOP/s (4 N H S S D per forward, half of it for causal, 2.5 times it for backward) beside
the rate of an 8192^3 GEMM in the same run.
"""

import argparse
import datetime
import json
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def time_ms(fn, repeats=10, warmup=3):
    """Median of device times of single calls, the L2 cache flushed before each."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for _ in range(warmup):
        fn()
    times = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def gemm_rate(dtype):
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / time_ms(lambda: a @ b) / 1e9


def ours(q, k, v, causal, bias, p, dout, window):
    ops = torch.ops.xformers
    groups, heads = k.shape[2], q.shape[2] // k.shape[2]
    if heads > 1:  # shared by the heads of a group, not copied
        q, dout = (t.unflatten(2, (groups, heads)) for t in (q, dout))
        k, v = (t.unsqueeze(3).expand(-1, -1, -1, heads, -1) for t in (k, v))
    state = ops.draw_philox_state() if p > 0 else None
    args = {"attn_bias": bias, "window_right": 0 if causal else -1, "p": p, "philox_state": state}
    if window:
        args["window_left"] = window - 1
    forward = lambda: ops.attention_forward(q, k, v, need_lse=True, **args)  # noqa: E731
    out, lse = forward()

    def backward():
        _, dk, dv, _ = ops.attention_backward(dout, q, k, v, out, lse, **args)
        return (dk.sum(3), dv.sum(3)) if heads > 1 else (dk, dv)

    return forward, backward


def sdpa(q, k, v, causal, bias, p, dout):
    q, k, v, dout = (t.transpose(1, 2) for t in (q, k, v, dout))
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]

    def forward(inputs=(q, k, v)):
        return torch.nn.functional.scaled_dot_product_attention(
            *inputs, attn_mask=bias, is_causal=causal, dropout_p=p, enable_gqa=q.shape[1] != k.shape[1]
        )

    out = forward(leaves)
    return forward, lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def row(sides, name, dtype, n, h, s, d, causal=False, bias=False, p=0.0, kv_heads=None, window=0):
    torch.manual_seed(0)
    q, dout = (torch.randn(n, s, h, d, device="cuda", dtype=dtype) for _ in range(2))
    k, v = (torch.randn(n, s, kv_heads or h, d, device="cuda", dtype=dtype) for _ in range(2))
    mask = torch.randn(n, h, s, s, device="cuda", dtype=dtype) if bias else None
    pairs = s * window - window * window / 2 if window else s * s * (0.5 if causal else 1)
    flops = 4 * n * h * pairs * d
    result = {"case": name, "dtype": str(dtype).split(".")[1], "n": n, "h": h, "s": s, "d": d}
    result.update(causal=causal, bias=bias, p=p, kv_heads=kv_heads or h, window=window)
    for side in [sides[0]] if window else sides:
        try:
            if side == "xformers":
                forward, backward = ours(q, k, v, causal, mask, p, dout, window)
                times = [time_ms(forward), time_ms(backward)]
            else:
                with sdpa_kernel(BACKENDS[side]):
                    forward, backward = sdpa(q, k, v, causal, mask, p, dout)
                    times = [time_ms(forward), time_ms(backward)]
        except RuntimeError as error:
            result[side] = {"error": str(error).split("\n")[0][:100]}
            continue
        result[side] = {"forward_ms": times[0], "forward_tflops": flops / times[0] / 1e9}
        result[side].update(backward_ms=times[1], backward_tflops=2.5 * flops / times[1] / 1e9)
    cells = []
    for side in sides:
        got = result.get(side, {"error": "has no windows"})
        rates = "-" if "error" in got else f"{got['forward_tflops']:.0f}/{got['backward_tflops']:.0f}"
        cells.append(f"{side} {rates}")
    print(f"{name:28} {result['dtype']:9} " + "  ".join(cells), flush=True)
    return result


def decode(n, heads, kv_heads, s, d=128):
    """One query per sequence: GB/s of keys and values read."""
    q = torch.randn(n, 1, kv_heads, heads // kv_heads, d, device="cuda", dtype=torch.bfloat16)
    k, v = (
        torch.randn(n, s, kv_heads, 1, d, device="cuda", dtype=torch.bfloat16).expand(-1, -1, -1, heads // kv_heads, -1)
        for _ in range(2)
    )
    ms = time_ms(lambda: torch.ops.xformers.attention_forward(q, k, v))
    rate = 2 * n * s * kv_heads * d * 2 / ms / 1e6
    print(f"decode N{n} {heads}/{kv_heads} S{s}: {rate:.0f} GB/s", flush=True)
    return {"case": f"decode N{n} {heads}/{kv_heads} S{s}", "forward_ms": ms, "gb_per_s": rate}


def host_us(calls=2000):
    """Host time of one call on a tiny input, from Python to the launch."""
    q = torch.randn(1, 8, 1, 64, device="cuda", dtype=torch.bfloat16)
    torch.ops.xformers.attention_forward(q, q, q)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        torch.ops.xformers.attention_forward(q, q, q)
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return 1e6 * spent / calls


def rows(sides, quick, dims):
    for d in dims:
        for s in (1024, 4096, 16384):
            for causal in (False, True):
                if quick and s == 16384 and not causal:
                    continue
                n, h = 16384 // s, 2048 // d
                yield row(sides, f"D{d} S{s} {'causal' if causal else 'full'}", torch.bfloat16, n, h, s, d, causal)
    yield row(sides, "fp16 D128 S4096 causal", torch.float16, 4, 16, 4096, 128, True)
    yield row(sides, "bias D128 S2048", torch.bfloat16, 4, 16, 2048, 128, bias=True)
    yield row(sides, "dropout D128 S4096", torch.bfloat16, 4, 16, 4096, 128, p=0.1)
    yield row(sides, "dropout D128 S4096 causal", torch.bfloat16, 4, 16, 4096, 128, True, p=0.1)
    yield row(sides, "local 1024 D128 S16384", torch.bfloat16, 1, 16, 16384, 128, True, window=1024)
    yield row(sides, "gqa 32/8 D128 S4096", torch.bfloat16, 4, 32, 4096, 128, kv_heads=8)
    yield row(sides, "gqa 32/8 D128 S4096 causal", torch.bfloat16, 4, 32, 4096, 128, True, kv_heads=8)
    yield row(sides, "fp32 D64 S2048", torch.float32, 4, 16, 2048, 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", required=True, help="libxformers.so built with XFORMERS_CUDA=ON")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--commit", default="", help="recorded as it is")
    parser.add_argument("--dims", default="64,128,256", help="head dims")
    parser.add_argument("--sides", default=",".join(["xformers", *BACKENDS]), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="without the longest rows")
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    record = {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "commit": options.commit,
        "gemm_8192_bf16_tflops": gemm_rate(torch.bfloat16),
        "rows": [],
    }
    print(f"{record['gpu']}, GEMM {record['gemm_8192_bf16_tflops']:.0f} TFLOP/s; forward/backward TFLOP/s")
    for result in rows(options.sides.split(","), options.quick, [int(d) for d in options.dims.split(",")]):
        record["rows"].append(result)
    for n, heads, kv_heads, s in ((1, 32, 8, 32768), (16, 32, 8, 8192), (64, 32, 8, 4096), (16, 32, 32, 8192)):
        record["rows"].append(decode(n, heads, kv_heads, s))
    record["host_us_per_call"] = host_us()
    print(f"host time of a call: {record['host_us_per_call']:.1f} us")
    with open(options.out, "w") as file:
        json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
