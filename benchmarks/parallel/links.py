"""What moves between ranks, and how fast: topology, peer access, shared memory, collectives; rates for predictions.

python benchmarks/parallel/links.py --world-size 2 --json links.json

GPUs over NCCL where there are as many as ranks, else processes of one thread over Gloo. Bytes are those that a rank is
sent by others. `machine` in the JSON is what benchmarks/parallel/scale.py and context.py take.
"""

import argparse
import subprocess

import numpy as np
import torch
import torch.distributed as dist
from processes import on_ranks, seconds_of
from xformers.helpers.training import program, write_json

from xformers.ops import LowerTriangularMask, init_ipc, memory_efficient_attention

SMALLEST = 64 << 10


def reason(error):
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def works(attempt):
    """{"works": True} on all ranks, or why not."""
    why = None
    try:
        attempt()
    except Exception as error:  # whatever forbids it is the answer
        why = reason(error)
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, why)
    whys = [each for each in answers if each]
    return {"works": not whys, **({"why": whys[0]} if whys else {})}


def topology(device):
    if device.type != "cuda":
        return "processes of one host over Gloo"
    try:
        return subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return reason(error)


def peer_access(device):
    if device.type != "cuda":
        return None
    ranks = range(dist.get_world_size())
    return [[a == b or torch.cuda.can_device_access_peer(a, b) for b in ranks] for a in ranks]


def symmetric_memory(device):
    if device.type != "cuda":
        return {"works": False, "why": "CPU tensors"}

    def attempt():
        from torch.distributed import _symmetric_memory as symmetric

        memory = symmetric.empty(1024, device=device)
        symmetric.rendezvous(memory, dist.group.WORLD)

    return works(attempt)


def transfers(device, largest, samples):
    """A row per kind and size."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    behind, before = (rank + 1) % ranks, (rank - 1) % ranks
    splits_to, splits_from = [0] * ranks, [0] * ranks
    rows, size = [], SMALLEST
    while size <= largest:
        x, y = torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
        whole = torch.empty(size * ranks, dtype=torch.uint8, device=device)
        splits_to[behind] = splits_from[before] = size

        def gather(x=x, whole=whole):
            dist.all_gather_into_tensor(whole, x)

        def reduce_scatter(whole=whole, y=y):
            dist.reduce_scatter_tensor(y.view(torch.float32), whole.view(torch.float32))

        def send_receive(x=x, y=y):
            ops = [dist.P2POp(dist.isend, x, behind), dist.P2POp(dist.irecv, y, before)]
            for work in dist.batch_isend_irecv(ops):
                work.wait()

        def one_way(x=x, y=y):
            if rank == 0:
                dist.send(x, 1)
            elif rank == 1:
                dist.recv(y, 0)

        def shift(x=x, y=y):
            dist.all_to_all_single(y, x, splits_from, splits_to)

        def copy(x=x, y=y):
            y.copy_(x)

        ways = {"copy here": (copy, size)}
        if ranks > 1:
            ways |= {
                "all-gather": (gather, size * (ranks - 1)),
                "reduce-scatter": (reduce_scatter, size * (ranks - 1)),
                "send and receive": (send_receive, size),
                "one way": (one_way, size),
                "shift": (shift, size),
            }
        for what, (run, count) in ways.items():
            row = {"what": what, "bytes": count}
            answer = works(run)
            if answer["works"]:
                seconds = seconds_of(run, device, samples)
                row |= {"seconds": seconds, "bytes_per_second": count / seconds}
            rows.append({**row, **answer})
        size *= 4
    return rows


def peer_copies(device, largest, samples):
    """Copies that rank 0 makes between pairs of GPUs, by copy engines, in each direction."""
    rows = []
    if device.type != "cuda":
        return rows
    pairs = [(0, other) for other in range(1, dist.get_world_size())]
    for a, b in [*pairs, *((b, a) for a, b in pairs)]:
        for size in (SMALLEST, largest):
            on_first = size if dist.get_rank() == 0 else 0
            x = torch.ones(on_first, dtype=torch.uint8, device=f"cuda:{a}")
            y = torch.empty(on_first, dtype=torch.uint8, device=f"cuda:{b}")

            def run(x=x, y=y, a=a, b=b):
                y.copy_(x)
                torch.cuda.synchronize(a)
                torch.cuda.synchronize(b)

            seconds = seconds_of(run, device, samples, alone=True)
            rows.append(
                {"what": f"copy {a} to {b}", "bytes": size, "seconds": seconds, "bytes_per_second": size / seconds}
            )
    return rows


def line_through(rows):
    """(latency, bytes a second) of rows, least squares of relative errors."""
    sizes, seconds = (np.array([row[name] for row in rows], dtype=float) for name in ("bytes", "seconds"))
    latency, per_byte = np.linalg.lstsq(np.stack([1 / seconds, sizes / seconds], 1), np.ones_like(seconds), rcond=None)[
        0
    ]
    return float(max(latency, 1e-7)), float(1 / max(per_byte, 1e-15))


def rates_of_device(device, samples, seqlen=None):
    """FLOP a second of attention (causal, forward) and of a product, and what a small call of attention takes."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seqlen = seqlen or (16384 if device.type == "cuda" else 1024)
    heads, head_dim = (16, 128) if device.type == "cuda" else (2, 64)
    q = torch.randn(1, seqlen, heads, head_dim, dtype=dtype, device=device)
    a = torch.randn(4096 if device.type == "cuda" else 512, q.shape[2] * q.shape[3], dtype=dtype, device=device)
    few = q[:, :16]
    attention = seconds_of(lambda: memory_efficient_attention(q, q, q, LowerTriangularMask()), device, samples)
    product = seconds_of(lambda: a @ a.T, device, samples)
    call = seconds_of(lambda: memory_efficient_attention(few, few, few), device, samples)
    return {
        "flops": 4 * heads * head_dim * seqlen * (seqlen + 1) / 2 / attention,
        "product_flops": 2 * a.shape[0] ** 2 * a.shape[1] / product,
        "call_seconds": call,
    }


def measure(options, device):
    largest = options.max_bytes or (1 << 30 if device.type == "cuda" else 16 << 20)
    rows = transfers(device, largest, options.samples)
    rates = rates_of_device(device, options.samples)
    shifts = [row for row in rows if row["what"] == "shift" and row["works"]]
    latency, rate = line_through(shifts) if shifts else (1e-6, 1e12)
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
        "backend": dist.get_backend(),
        "ranks": dist.get_world_size(),
        "torch": str(torch.__version__),
        "topology": topology(device),
        "peer_access": peer_access(device),
        "symmetric_memory": symmetric_memory(device),
        "ipc": works(lambda: init_ipc(dist.group.WORLD, device.type)),
        "rows": rows + peer_copies(device, largest, options.samples),
        "product_flops": rates["product_flops"],
        "machine": {  # in the order of parallel::Machine
            "ranks_per_host": 8 if is_gpu else 1 << 20,
            "flops": rates["flops"],
            "link_bytes": rate,
            "network_bytes": 4.5e10 if is_gpu else rate,  # one port of 400 Gb/s: not measured here
            "link_latency": latency,
            "network_latency": 35e-6 if is_gpu else latency,
            "call_seconds": rates["call_seconds"],
        },
    }


def parser_of(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, default=2, help="processes")
    parser.add_argument("--cpu", action="store_true", help="Gloo and CPU tensors where there are GPUs, too")
    parser.add_argument("--samples", type=int, default=7, help="of which the median counts")
    parser.add_argument("--json", metavar="FILE", help="where to write all figures")
    return parser


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--max-bytes", type=int, help="the largest transfer; 1 GiB between GPUs, else 16 MiB")
    options = parser.parse_args()
    report = on_ranks(measure, options)
    print(f"{report['ranks']} ranks, {report['device']}, {report['backend']}\n{report['topology']}")
    for name in ("symmetric_memory", "ipc"):
        print(f"{name}: {'works' if report[name]['works'] else report[name]['why']}")
    for row in report["rows"]:
        figures = (
            f"{1e6 * row['seconds']:10.1f} us {row['bytes_per_second'] / 1e9:9.2f} GB/s" if "seconds" in row else ""
        )
        print(f"{row['what']:<18}{row['bytes'] / 1024:10.0f} KiB {figures or row['why']}")
    print("machine: " + ", ".join(f"{name} {value:.3g}" for name, value in report["machine"].items()))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    program(main)
