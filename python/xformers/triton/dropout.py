"""Bias, activation and dropout in one pass."""

import torch
from torch import nn

from xformers._activation import Activation, activation_name


def dropout(
    x: torch.Tensor,
    p: float,
    bias: torch.Tensor | None = None,
    activation: Activation | str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`dropout(activation(x + bias)) + residual`: each element is zero with probability p, else scaled by 1 / (1 - p).

    bias is `[width]`, residual like x. The mask is drawn from the default generator of x's device (`torch.manual_seed`
    repeats it) and never stored: backward computes it again. p = 0: no dropout; p = 1: zeros. gelu is the tanh form.
    In fp32 (fp64 for fp64) with one rounding; under autocast in its dtype. Differentiable in x, bias and residual.
    ValueError where shapes, dtypes or devices don't fit, p is no probability or the activation is unknown. The mask is
    of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
    """
    return torch.ops.xformers.fused_dropout(x, p, bias, getattr(activation, "value", activation), residual)


class FusedDropoutBias(nn.Module):
    """`dropout(x, p, bias, activation)` in training, `activation(x + bias)` in evaluation.

    bias_shape: the width of a bias of zeros, or None for no bias. AssertionError unless 0 <= p < 1, ValueError for an
    unknown activation.
    """

    def __init__(self, p: float, bias_shape: int | None, activation: Activation | str | None = None):
        super().__init__()
        if not 0 <= p < 1:
            name = type(self).__name__
            raise AssertionError(f"{name}: p is {p}, expected a probability in [0, 1).  Fix: pass a fraction.")
        self.p = float(p)
        self.activation = activation_name(activation)
        self.bias: nn.Parameter | None
        if bias_shape is not None:
            self.bias = nn.Parameter(torch.zeros(bias_shape))
        else:
            self.register_parameter("bias", None)

    def init_weights(self, *_: object, **__: object) -> None:
        """Bias to zeros."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p if self.training else 0.0, self.bias, self.activation)

    def extra_repr(self) -> str:
        return f"p={self.p}, activation={self.activation}"


__all__ = ["FusedDropoutBias", "dropout"]
