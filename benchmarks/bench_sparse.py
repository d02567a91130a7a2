"""bench_sparse.py [--rows NAME ...] [--dtype DTYPE] [--rounds N] [--threads N]   sparse tensors on the CPU.

B matrices [M, M] with one random pattern, K columns of the dense matrix. Each operator takes turns with its eager form
(gather, multiply, sum; scatter for softmax) and, in fp32 and fp64, with torch.sparse (`sampled_addmm`, CSR @ dense, one
matrix of the batch after the other). Times are medians of one run, in milliseconds, with one thread those of the
processor, so that other load counts little. JSON lines, one a row.
"""

import argparse
import json
import statistics
import time

import torch

from xformers import operators as ops

SHAPES = [(8, 1024, 64), (8, 2048, 64), (1, 4096, 64), (1, 4096, 256)]
DENSITIES = [0.1, 0.05, 0.01]


def compare(name, sides, rounds):
    """Alternating, after one call of each; ratios are how many times faster ours is."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {side: [] for side in sides}
    for step in sides.values():
        step()
    for _ in range(rounds):
        for side, step in sides.items():
            start = clock()
            step()
            times[side].append(1e3 * (clock() - start))
    medians = {side: statistics.median(values) for side, values in times.items()}
    row = {"name": name} | {f"{side}_ms": round(ms, 3) for side, ms in medians.items()}
    row |= {f"over_{side}": round(ms / medians["ours"], 2) for side, ms in medians.items() if side != "ours"}
    print(json.dumps(row), flush=True)
    return row


def csr_rows(args):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch, m, k in SHAPES:
        for density in DENSITIES:
            mask = torch.rand(m, m, generator=generator) < density
            _, offsets, columns = ops.csr_from_dense(mask[None])
            row = torch.arange(m).repeat_interleave(offsets.diff())
            column = columns.long()
            a, b = (torch.randn(batch, m, k, generator=generator).to(args.dtype) for _ in range(2))
            values = torch.randn(batch, len(columns), generator=generator).to(args.dtype)
            has_torch = args.dtype in (torch.float32, torch.float64)
            theirs = [torch.sparse_csr_tensor(offsets, columns, v, (m, m)) for v in values] if has_torch else []
            turned = [x.t() for x in b]

            def eager_softmax(values=values, row=row, m=m, batch=batch):
                index = row.expand(batch, -1)
                top = values.new_full((batch, m), -torch.inf).scatter_reduce(1, index, values, "amax")
                power = (values - top.gather(1, index)).exp()
                return power / power.new_zeros(batch, m).scatter_add(1, index, power).gather(1, index)

            def eager_spmm(values=values, row=row, column=column, b=b, m=m):
                return b.new_zeros(len(b), m, b.shape[2]).index_add_(1, row, values[..., None] * b[:, column])

            cases = {
                "sddmm": {
                    "ours": lambda a=a, b=b, o=offsets, c=columns: ops.sddmm_sputnik(a, b, o, o, c),
                    "eager": lambda a=a, b=b, row=row, column=column: (a[:, row] * b[:, column]).sum(-1),
                    "torch": lambda a=a, t=turned, c=theirs: [
                        torch.sparse.sampled_addmm(p, x, y, beta=0) for p, x, y in zip(c, a, t, strict=True)
                    ],
                },
                "softmax": {
                    "ours": lambda v=values, o=offsets, c=columns, m=m: ops.sparse_softmax_sputnik(m, m, o, v, o, c),
                    "eager": eager_softmax,
                },
                "spmm": {
                    "ours": lambda b=b, v=values, o=offsets, c=columns, m=m: ops.spmm_sputnik(b, o, v, o, c, m),
                    "eager": eager_spmm,
                    "torch": lambda b=b, c=theirs: [p @ x for p, x in zip(c, b, strict=True)],
                },
            }
            for operator, sides in cases.items():
                if args.rows and operator not in args.rows:
                    continue
                if not has_torch:
                    sides.pop("torch", None)
                name = f"{operator}:b{batch},m{m},k{k},density{density}"
                rows.append(compare(name, sides, args.rounds))
    return rows


def summary(rows):
    for operator in dict.fromkeys(row["name"].split(":")[0] for row in rows):
        of = [row for row in rows if row["name"].startswith(operator + ":")]
        for side in ("over_eager", "over_torch"):
            ratios = [row[side] for row in of if side in row]
            if ratios:
                mean = round(statistics.geometric_mean(ratios), 3)
                print(json.dumps({"name": f"{operator}: geometric mean", side: mean, "least": min(ratios)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    summary(csr_rows(args))


if __name__ == "__main__":
    main()
