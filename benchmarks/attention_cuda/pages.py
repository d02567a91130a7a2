"""A cache in pages, as many queries as keys: forward, beside the same keys in one piece."""

import torch

import xformers.ops as xops
from attention_cuda.timing import Bench

SEQUENCES, LENGTH, HEADS, DIM = 4, 4096, 16, 128
PAGES = (16, 64, 256)


def run(bench: Bench) -> dict:
    """TFLOP/s of causal attention; pages lie in random order."""
    length = bench.size(LENGTH, 512)
    shape = (1, SEQUENCES * length, HEADS, DIM)
    q, k, v = (bench.randn(*shape) for _ in range(3))
    dense = [x.view(SEQUENCES, length, HEADS, DIM) for x in (q, k, v)]
    sides = {"dense": lambda: xops.memory_efficient_attention(*dense, attn_bias=xops.LowerTriangularMask())}
    masks = xops.fmha.attn_bias
    padded = masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        [length] * SEQUENCES, length, [length] * SEQUENCES
    )
    for size in PAGES:
        count = length // size
        order = torch.randperm(SEQUENCES * count, generator=torch.Generator().manual_seed(size)).int()
        table = order.view(SEQUENCES, count)
        mask = padded.make_paged(table, size, masks.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask).to(q.device)
        sides[f"pages of {size}"] = lambda mask=mask: xops.memory_efficient_attention(q, k, v, attn_bias=mask)
    with torch.no_grad():
        times = bench.medians_ms(sides)
    flops = 2 * SEQUENCES * HEADS * length**2 * DIM
    row = {"case": f"pages D{DIM} S{LENGTH} causal", "dtype": "bfloat16", "paged_forward": {}}
    for name, ms in times.items():
        row["paged_forward"][name] = {"error": ms} if isinstance(ms, str) else {"ms": ms, "tflops": flops / ms / 1e9}
    cells = [f"{name} {got.get('tflops', float('nan')):.0f}" for name, got in row["paged_forward"].items()]
    print(f"{row['case']:26} bfloat16  " + "  ".join(cells), flush=True)
    return row
