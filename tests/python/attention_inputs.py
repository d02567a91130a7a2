"""Inputs for attention tests: every layout, with its elements anywhere in memory, the same on every default device."""

import torch

# How a tensor may lie in memory. All keep values and shape.
STRIDES = ["contiguous", "heads_first", "packed", "wide", "last_not_unit", "reversed_batch"]


def with_strides(x: torch.Tensor, kind: str) -> torch.Tensor:
    """A tensor equal to x whose memory is laid out as `kind` says; what lies around it is NaN."""
    if kind == "contiguous":
        return x
    if kind == "heads_first":  # [batch, heads, seqlen, ...] in memory
        return x.transpose(1, -2).contiguous().transpose(1, -2)
    if kind == "packed":  # one of three, as in a fused qkv projection
        buffer = torch.full((*x.shape[:2], 3, *x.shape[2:]), torch.nan, dtype=x.dtype)
        buffer[:, :, 1] = x
        return buffer[:, :, 1]
    if kind == "wide":  # rows padded by an odd number, starting at an odd offset
        buffer = torch.full((*x.shape[:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype)
        buffer[..., 1 : x.shape[-1] + 1] = x
        return buffer[..., 1 : x.shape[-1] + 1]
    if kind == "last_not_unit":
        buffer = torch.full((*x.shape, 2), torch.nan, dtype=x.dtype)
        buffer[..., 0] = x
        return buffer[..., 0]
    if kind == "reversed_batch":  # batch is the innermost dimension
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    raise ValueError(kind)


def random(shape, dtype=torch.float32, seed=0, requires_grad=False, strides="contiguous") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
    return with_strides(x.to(torch.get_default_device()), strides).detach().requires_grad_(requires_grad)


def qkv(batch=2, nq=5, nk=7, heads=(3,), head_dim=8, head_dim_v=None, dtype=torch.float32, requires_grad=True, seed=0,
        strides=("contiguous",) * 3):  # fmt: skip
    """query, key, value. heads: () for 3-D, (heads,) for 4-D, (groups, heads) for 5-D."""
    shapes = [(batch, nq, *heads, head_dim), (batch, nk, *heads, head_dim), (batch, nk, *heads, head_dim_v or head_dim)]
    return [random(s, dtype, seed + i, requires_grad, strides[i]) for i, s in enumerate(shapes)]
