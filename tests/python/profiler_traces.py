"""Made-up traces with known answers, as torch.profiler writes them."""

import gzip
import json


def operator(name, start, duration, dims=(), types=(), values=(), tid=1, **args):
    args = {"Input Dims": list(dims), "Input type": list(types), "Concrete Inputs": list(values), **args}
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": tid, "ts": start, "dur": duration, "args": args}


def mm(start, duration, m, k, n, dtype="float", **options):
    return operator("aten::mm", start, duration, [[m, k], [k, n]], [dtype] * 2, ["", ""], **options)


def kernel(name, start, duration, stream=7, correlation=-1, cat="kernel", **args):
    args = {"correlation": correlation, "stream": stream, "device": 0, **args}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": start, "dur": duration, "args": args}


def launch(correlation, start, duration):
    return {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": start,
            "dur": duration, "args": {"correlation": correlation}}  # fmt: skip


def step(number, start, duration, on_gpu=False):
    return {"ph": "X", "cat": "gpu_user_annotation" if on_gpu else "user_annotation", "name": f"ProfilerStep#{number}",
            "pid": 0 if on_gpu else 1, "tid": 7 if on_gpu else 1, "ts": start, "dur": duration, "args": {}}  # fmt: skip


def memory(start, total):
    return {"ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 1, "tid": 1, "ts": start,
            "args": {"Total Allocated": total, "Bytes": 1, "Device Id": -1, "Device Type": 0}}  # fmt: skip


def trace(events, rank=None, device=None):
    whole = {"schemaVersion": 1, "deviceProperties": [], "traceEvents": list(events), "traceName": "made up"}
    if rank is not None:
        whole["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": 64}
    if device is not None:
        whole["deviceProperties"] = [{"id": 0, "name": device, "computeMajor": 9, "computeMinor": 0}]
    return whole


def write(folder, whole, name="host_1.1.pt.trace.json.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    text = json.dumps(whole).encode()
    path.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
    return path
