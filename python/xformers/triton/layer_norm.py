"""Layer normalisation over the last dimension."""

from collections.abc import Sequence

import torch
from torch import nn


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, with fp32 statistics, in x's dtype.

    weight, bias: [width]. For fp16, eps is at least 1.6e-5. In fp32 under autocast. Differentiable in everything.
    ValueError where shapes, dtypes or devices don't fit. From "Layer Normalization" (Ba, Kiros and Hinton,
    arXiv:1607.06450).
    """
    return torch.ops.xformers.fused_layer_norm(x, weight, bias, eps)


class FusedLayerNorm(nn.Module):
    """`layer_norm` with a weight of ones and a bias of zeros to begin with, or with neither. ValueError where
    normalized_shape has more than one size."""

    def __init__(self, normalized_shape: int | Sequence[int], affine: bool = True, eps: float = 1e-6):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if len(shape) != 1:
            raise ValueError(
                f"FusedLayerNorm: normalized_shape is {shape}, expected one size.  Fix: flatten the last dimensions."
            )
        self.normalized_shape = shape
        self.eps = self.epsilon = eps
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        if affine:
            self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

    def init_weights(self, *_: object, **__: object) -> None:
        """Weight to ones, bias to zeros."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


__all__ = ["FusedLayerNorm", "layer_norm"]
