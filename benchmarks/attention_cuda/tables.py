"""The rows: the table of dense problems, and the harder cases one by one."""

import torch

from attention_cuda.problem import Problem

DIMS, LENGTHS = (64, 128, 256), (1024, 4096, 16384)
TOKENS, WIDTH = 16384, 2048  # of every dense row: n s, and h d
ALL = ["xformers", "flash", "cudnn", "efficient", "math"]
SIDES = [*ALL, "flex"]  # the last in modified.py alone
FUSED = ALL[:4]


def dense(dims=DIMS, lengths=LENGTHS):
    """bf16 in full; fp16 at one length, against PyTorch's flash backend."""
    for d in dims:
        for s in lengths:
            for causal in (False, True):
                name = f"D{d} S{s} {'causal' if causal else 'full'}"
                yield Problem(name, TOKENS // s, WIDTH // d, s, d, causal=causal), ALL if s == 1024 else FUSED
    for d in dims:
        for causal in (False, True):
            name = f"fp16 D{d} S4096 {'causal' if causal else 'full'}"
            yield Problem(name, 4, WIDTH // d, 4096, d, torch.float16, causal=causal), ["xformers", "flash"]


def harder():
    for grad in (False, True):
        name = f"bias{' and its gradient' if grad else ''} D128 S2048"
        rivals = ["xformers", "efficient"] if grad else ["xformers", "efficient", "cudnn"]
        yield Problem(name, 4, 16, 2048, 128, bias=True, bias_grad=grad), rivals
    for causal in (False, True):
        name = f"dropout D128 S4096{' causal' if causal else ''}"
        yield Problem(name, 4, 16, 4096, 128, causal=causal, p=0.1), FUSED
    for d in (64, 128):
        yield Problem(f"fp32 D{d} S2048", 4, 16, 2048, d, torch.float32), ["xformers", "efficient", "math"]
    yield Problem("window 1024 D128 S16384", 1, 16, 16384, 128, causal=True, window=1024), ["xformers", "flash"]
    for causal in (False, True):
        name = f"gqa 32/8 D128 S4096{' causal' if causal else ''}"
        yield Problem(name, 4, 32, 4096, 128, causal=causal, kv_heads=8), FUSED
    yield Problem("few heads N1 H2 D128 S4096", 1, 2, 4096, 128), FUSED
    yield Problem("few heads N1 H2 D64 S4096 causal", 1, 2, 4096, 64, causal=True), FUSED
    for causal in (False, True):
        name = f"deterministic D128 S4096{' causal' if causal else ''}"
        yield Problem(name, 4, 16, 4096, 128, causal=causal, deterministic=True), ["xformers", "flash"]
    for d, d_v in ((96, 96), (192, 192), (192, 128)):
        for causal in (False, True):
            name = f"D{d}{f'/{d_v}' if d_v != d else ''} S4096{' causal' if causal else ''}"
            yield Problem(f"wide {name}", 4, 16, 4096, d, causal=causal, d_v=d_v), ["xformers", "flash", "cudnn"]
