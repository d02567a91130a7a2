"""One query per sequence against a cache of keys and values: GB/s of keys and values read, per call and in a graph."""

import torch
from torch.nn.attention import sdpa_kernel

import xformers.ops as xops
from attention_cuda.problem import BACKENDS
from attention_cuda.timing import Bench

# batch, query heads, key heads, keys, dtype
ROWS = [
    (1, 32, 8, 32768, torch.bfloat16),
    (1, 64, 8, 131072, torch.bfloat16),
    (16, 32, 8, 8192, torch.bfloat16),
    (64, 32, 8, 4096, torch.bfloat16),
    (16, 32, 32, 8192, torch.bfloat16),
    (256, 16, 1, 256, torch.float16),
    (256, 16, 2, 256, torch.float16),
    (32, 16, 2, 2048, torch.float16),
    (8, 16, 2, 8192, torch.float16),
    (2, 16, 2, 32768, torch.float16),
    (1, 16, 2, 131072, torch.float16),
]
DIM = 128


def _measure(bench: Bench, name: str, bytes_read: int, sides: dict) -> dict:
    row = {"case": name, "bytes": bytes_read, "decode": {}}
    with torch.no_grad():
        for side, ms in bench.medians_ms(sides).items():
            if isinstance(ms, str):
                row["decode"][side] = {"error": ms}
                continue
            got = row["decode"][side] = {"ms": ms, "gb_per_s": bytes_read / ms / 1e6}
            try:
                got["graph_gb_per_s"] = bytes_read / bench.graph_ms(sides[side]) / 1e6
            except RuntimeError as error:
                got["graph_error"] = str(error).split("\n")[0][:100]
    cells = [
        f"{side} {got.get('gb_per_s', float('nan')):.0f}/{got.get('graph_gb_per_s', float('nan')):.0f}"
        for side, got in row["decode"].items()
    ]
    print(f"{name:32} " + "  ".join(cells), flush=True)
    return row


def dense(bench: Bench, batch: int, heads: int, kv_heads: int, keys: int, dtype) -> dict:
    name = f"decode {str(dtype).split('.')[1]} N{batch} {heads}/{kv_heads} S{keys}"
    batch, keys = bench.size(batch, 2), bench.size(keys, 64)
    group = heads // kv_heads
    q = bench.randn(batch, 1, kv_heads, group, DIM, dtype=dtype)
    k, v = (bench.randn(batch, keys, kv_heads, 1, DIM, dtype=dtype).expand(-1, -1, -1, group, -1) for _ in range(2))
    inputs = [q.flatten(2, 3).transpose(1, 2), k[:, :, :, 0].transpose(1, 2), v[:, :, :, 0].transpose(1, 2)]

    def sdpa(backend):
        with sdpa_kernel(BACKENDS[backend]):
            return torch.nn.functional.scaled_dot_product_attention(*inputs, enable_gqa=True)

    sides = {"xformers": lambda: xops.memory_efficient_attention_forward(q, k, v)}
    sides.update({backend: lambda b=backend: sdpa(b) for backend in ("cudnn", "flash")})
    return _measure(bench, name, 2 * batch * keys * kv_heads * DIM * dtype.itemsize, sides)


def ragged(bench: Bench, batch: int = 64, longest: int = 16384) -> dict:
    """A padded cache of which each sequence uses its own length, spread evenly over the logarithm."""
    batch, longest = bench.size(batch, 4), bench.size(longest, 256)
    heads, kv_heads = 32, 8
    lengths = torch.logspace(7, torch.log2(torch.tensor(longest)).item(), batch, base=2).int().tolist()
    bias = xops.fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[1] * batch, kv_padding=longest, kv_seqlen=lengths
    )
    q = bench.randn(1, batch, kv_heads, heads // kv_heads, DIM)
    k, v = (
        bench.randn(1, batch * longest, kv_heads, 1, DIM).expand(-1, -1, -1, heads // kv_heads, -1) for _ in range(2)
    )
    if not bench.dry:
        bias.to(torch.device("cuda"))
    sides = {"xformers": lambda: xops.memory_efficient_attention_forward(q, k, v, bias)}
    return _measure(bench, "decode ragged N64 128..16384", 2 * sum(lengths) * kv_heads * DIM * 2, sides)


def run(bench: Bench, quick: bool):
    for row in ROWS[:5] if quick else ROWS:
        yield dense(bench, *row)
    yield ragged(bench)
