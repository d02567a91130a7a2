"""Bias, activation, dropout, residual and norm in one or two passes."""

import torch
from torch import nn

from xformers._activation import Activation
from xformers.triton.dropout import FusedDropoutBias, dropout
from xformers.triton.layer_norm import FusedLayerNorm


class NVFusedBiasActivationDropout(FusedDropoutBias):
    """`dropout(activation(x + bias))`; no dropout in evaluation."""

    def __init__(self, p: float, activation: Activation | str | None = None, bias_shape: int | None = None):
        super().__init__(p, bias_shape, activation)


class NVFusedBiasDropoutRes(FusedDropoutBias):
    """`dropout(x + bias) + residual`; no dropout in evaluation."""

    def __init__(self, p: float, bias_shape: int | None = None):
        super().__init__(p, bias_shape)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p if self.training else 0.0, self.bias, residual=residual)


class NVFusedBiasDropoutResLayerNorm(nn.Module):
    """ "post": `norm(dropout(x + bias) + residual)`; "pre": `residual + norm(dropout(x + bias))`."""

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
            return residual + self.norm(dropout(x, p, bias))
        return self.norm(dropout(x, p, bias, residual=residual))


__all__ = ["NVFusedBiasActivationDropout", "NVFusedBiasDropoutRes", "NVFusedBiasDropoutResLayerNorm"]
