"""Softmax over the last dimension, fused with an additive mask."""

import torch


def softmax(x: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
    """`softmax(x + mask)` over the last dimension, in fp32 (fp64 for fp64) with one rounding to x's dtype.

    mask is additive, has x's dtype and any shape that broadcasts to x's. causal: row r of `[..., rows, columns]` sees
    the columns up to r. A row that sees nothing is NaN. Differentiable in x and mask; only the result is kept.
    ValueError where shapes, dtypes or devices don't fit.
    """
    return torch.ops.xformers.softmax(x, mask, causal)


def log_softmax(x: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
    """The logarithm of `softmax`, computed as such. Hidden columns are -inf. ValueError as there."""
    return torch.ops.xformers.log_softmax(x, mask, causal)


__all__ = ["log_softmax", "softmax"]
