"""A product, under upstream's name."""

import torch


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b, `[m, k]` and `[k, n]`: torch.matmul."""
    return torch.matmul(a, b)


__all__ = ["matmul"]
