"""Bias, activation, dropout, residual and norm in one or two passes.

These are element-wise layers as PyTorch's own are: gelu is the exact one (erf), not the tanh form of the fused linear
layers, and under autocast x keeps its dtype. p is below 1 (AssertionError); there is no dropout in evaluation.
"""

import torch
from torch import nn

from xformers._activation import Activation
from xformers.triton.dropout import FusedDropoutBias
from xformers.triton.layer_norm import FusedLayerNorm

_dropout = torch.ops.xformers.elementwise_dropout


class NVFusedBiasActivationDropout(FusedDropoutBias):
    """`dropout(activation(x + bias))`."""

    requires_residual = False

    def __init__(self, p: float, activation: Activation | str | None = None, bias_shape: int | None = None):
        super().__init__(p, bias_shape, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _dropout(x, self.p if self.training else 0.0, self.bias, self.activation)


class NVFusedBiasDropoutRes(FusedDropoutBias):
    """`dropout(x + bias) + residual`."""

    requires_residual = True

    def __init__(self, p: float, bias_shape: int | None = None):
        super().__init__(p, bias_shape)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _dropout(x, self.p if self.training else 0.0, self.bias, residual=residual)


class NVFusedBiasDropoutResLayerNorm(nn.Module):
    """ "post": `norm(dropout(x + bias) + residual)`; "pre": `residual + norm(dropout(x + bias))`."""

    requires_residual = True

    def __init__(self, p: float, d_model: int, bias_shape: int | None = None, layer_norm_style: str = "post"):
        super().__init__()
        if layer_norm_style not in ("pre", "post"):
            raise ValueError(
                f"NVFusedBiasDropoutResLayerNorm: layer_norm_style is {layer_norm_style!r}, expected 'pre' or 'post'.  "
                "Fix: choose one."
            )
        self.pre = layer_norm_style == "pre"
        self.dropout = FusedDropoutBias(p, bias_shape)
        self.norm = FusedLayerNorm(d_model, eps=1e-5)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        p, bias = self.dropout.p if self.training else 0.0, self.dropout.bias
        if self.pre:
            return residual + self.norm(_dropout(x, p, bias))
        return self.norm(_dropout(x, p, bias, residual=residual))


__all__ = ["NVFusedBiasActivationDropout", "NVFusedBiasDropoutRes", "NVFusedBiasDropoutResLayerNorm"]
