"""Root-mean-square normalisation over the last dimension."""

import torch
from torch import nn


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float = 1e-6) -> torch.Tensor:
    """`x / sqrt(mean(x ** 2) + eps) * weight` over the last dimension, in x's dtype.

    Statistics and products in fp32 (fp64 for fp64). x and weight contiguous. Differentiable in both. ValueError where
    shapes, dtypes, devices or strides don't fit. From "Root Mean Square Layer Normalization" (Zhang and Sennrich,
    arXiv:1910.07467), with the mean where some texts have the sum.
    """
    return torch.ops.xformers.rms_norm(x, weight, eps)


def rms_norm_add(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, eps: float = 1e-6) -> torch.Tensor:
    """In place `x += y`; returns `rms_norm` of the new x. Differentiable in x, y and weight. ValueError as there."""
    return torch.ops.xformers.rms_norm_add_(x, y, weight, eps)


class RMSNorm(nn.Module):
    """`rms_norm` over the last dimension, which is `dim`, with a weight of ones to begin with, or with none."""

    def __init__(self, dim: int, include_weight: bool = True, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight: nn.Parameter | None
        if include_weight:
            self.weight = nn.Parameter(torch.ones(dim))
        else:
            self.register_parameter("weight", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def increment_and_forward_(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """In place `x += y`; returns the norm of the new x."""
        return rms_norm_add(x, y, self.weight, self.eps)


__all__ = ["RMSNorm", "rms_norm", "rms_norm_add"]
