"""The operators around attention on a GPU against eager PyTorch and torch.compile, on the same inputs in one run.

    PYTHONPATH=<build>/python python benchmarks/bench_blocks_cuda.py --out results.json [--only gate] [--dry]

Medians of CUDA-graph replays over rotating inputs that no cache holds. Memory-bound rows are GB/s (each input read
once, each output written once) and percent of the copy rate of this run; products are TFLOP/s.
"""

import argparse
import contextlib
import datetime
import json
import re

import torch
from blocks_cuda import layers, norms
from blocks_cuda.row import Run, copy_row

FAMILIES = [norms.rows, layers.rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file")
    parser.add_argument(
        "--only", default=".", help="what matches: rows such as 'rms_norm 4096', or gate, rope, dropout, swiglu, tiled"
    )
    parser.add_argument("--commit", default="", help="recorded as it is")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    args = parser.parse_args()
    import xformers  # noqa: F401  (loads the operators)

    # Not the default stream, which cannot be captured: a backward runs where its forward did.
    with contextlib.nullcontext() if args.dry else torch.cuda.stream(torch.cuda.Stream()):
        measure(args)


def measure(args):
    run = Run(dry=args.dry, compile=not args.no_compile)
    copy = copy_row(run)
    copy_rate = copy.rate(run.microseconds(copy)["copy"])
    device = "cpu" if args.dry else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, copy {copy_rate:.0f} GB/s", flush=True)
    report, failures = [], []
    head = {
        "gpu": device,
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "commit": args.commit,
        "copy": copy_rate,
    }
    for family in FAMILIES:
        for row in family(run, re.compile(args.only)):
            times = run.microseconds(row)
            sides = {}
            for side, value in times.items():
                if isinstance(value, str):
                    sides[side] = {"failed": value}
                    if side == "ours":
                        failures.append(f"{row.name}: {value}")
                    continue
                sides[side] = {"microseconds": value, "rate": row.rate(value), "note": row.notes.get(side, "")}
            report.append({"row": row.name, "unit": row.unit, "sides": sides})
            print(line(row, sides, copy_rate), flush=True)
            if args.out:  # after every row: what is cut off leaves the others
                write(args.out, {**head, "rows": report, "failures": failures})
            del row, times
            if not args.dry:
                torch.cuda.empty_cache()


def write(path, record):
    with open(path, "w") as file:
        json.dump(record, file, indent=1)


def line(row, sides, copy_rate):
    cells = []
    for side, values in sides.items():
        if "failed" in values:
            cells.append(f"{side} failed: {values['failed'][:40]}")
            continue
        percent = f" {100 * values['rate'] / copy_rate:3.0f} %" if row.unit == "GB/s" else ""
        note = f" {values['note']}" if values["note"] else ""
        cells.append(f"{side} {values['microseconds']:.1f} us {values['rate']:.0f}{percent}{note}")
    return f"{row.name:48s} " + " | ".join(cells)


if __name__ == "__main__":
    main()
