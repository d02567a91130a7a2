"""A product with a transposed operand, under upstream's name."""

import torch


def qk_dotprod(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """q k^T, `[m, dim]` and `[n, dim]`: torch.matmul."""
    return torch.matmul(query, key.transpose(-1, -2))


__all__ = ["qk_dotprod"]
