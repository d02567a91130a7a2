"""Attention on a GPU against every SDPA backend of PyTorch, on the same inputs in the same run.

    PYTHONPATH=<build>/python python benchmarks/bench_attention_cuda.py --out results.json
    ... --only dense,decode --dims 128        parts of it
    ... --dry                                 the script itself, in small, on the CPU
    FA3_LIB=<_C.so of FlashAttention-3> ...   FlashAttention-3 beside the others

Prints TFLOP/s forward/backward (4 n h d per attending pair; backward 2.5 times that) and ends with the goals: value,
bar, met or not. docs/benchmarks.md says how it measures.
"""

import argparse
import datetime
import json
import sys
import time

import torch
from attention_cuda import bars, decode, extras, modified, packed, pages, problem, tables
from attention_cuda.timing import Bench

import xformers

PARTS = [
    "host",
    "memory",
    "merge",
    "packed",
    "pages",
    "modified",
    "harder",
    "decode",
    "dense",
]  # the longest comes last


def run_part(part: str, bench: Bench, options, record: dict):
    sides, rows = options.sides.split(","), record["rows"]
    if part in ("dense", "harder"):
        dims = [int(d) for d in options.dims.split(",")]
        listed = tables.dense(dims) if part == "dense" else tables.harder()
        for one, names in listed:
            if options.match in one.name:
                rows.append(problem.run(bench, one, [n for n in names if n in sides], record["gemm_tflops"]))
    if part == "harder":
        rows.extend(extras.fp32_errors(bench, d) for d in (64, 128))
    if part == "packed":
        rows.extend(packed.run(bench, causal) for causal in (False, True))
    if part == "pages":
        rows.append(pages.run(bench))
    if part == "modified":
        rows.extend(modified.run(bench, "flex" in sides))
    if part == "decode":
        rows.extend(decode.run(bench, options.quick))
    if part == "merge":
        rows.extend(extras.merge(bench, *shape) for shape in extras.MERGES)
    if part == "memory":
        rows.extend(extras.memory(bench))
    if part == "host":
        record["host_us"] = extras.host(bench)


def save(record: dict, path: str):
    with open(path, "w") as file:
        json.dump(record, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--commit", default="", help="recorded as it is")
    parser.add_argument("--only", default=",".join(PARTS), help="parts")
    parser.add_argument("--dims", default="64,128,256", help="head dims of the dense table")
    parser.add_argument("--sides", default=",".join(tables.SIDES), help="what is measured")
    parser.add_argument("--match", default="", help="only dense and harder rows whose name holds this")
    parser.add_argument("--quick", action="store_true", help="fewer decode rows")
    parser.add_argument("--budget-ms", type=float, default=60.0, help="device time of each number")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: tries the script")
    options = parser.parse_args()
    begin = time.perf_counter()
    bench = Bench(options.dry, options.budget_ms)
    record = {
        "gpu": "none (dry)" if options.dry else torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "xformers": xformers.__version__,
        "commit": options.commit,
        "gemm_tflops": {str(t).split(".")[1]: bench.gemm_tflops(t) for t in (torch.bfloat16, torch.float16)},
        "copy_gb_per_s": bench.copy_gb_per_s(),
        "rows": [],
        "failures": [],
    }
    print(f"{record['gpu']}: GEMM 8192^3 {record['gemm_tflops']} TFLOP/s, copy {record['copy_gb_per_s']:.0f} GB/s")
    for part in options.only.split(","):
        start = time.perf_counter()
        try:
            run_part(part, bench, options, record)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # the other parts still count
            record["failures"].append(f"{part}: {error}")
            print(f"{part} failed: {error}")
        print(f"-- {part}: {time.perf_counter() - start:.1f} s", flush=True)
        save(record, options.out)
    record["summary"] = bars.summary(record)
    record["seconds"] = time.perf_counter() - begin
    save(record, options.out)
    sys.exit(bool(record["failures"]))


if __name__ == "__main__":
    main()
