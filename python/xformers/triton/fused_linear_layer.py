"""A linear layer with its activation."""

import math

import torch
from torch import nn

from xformers._activation import Activation, activation_name


class FusedLinear(nn.Module):
    """`activation(x weight^T + bias)` of x [..., in_features]. For backward, the input of the activation is kept only
    where there is one; gelu is the tanh form.

    Parameters begin as those of torch.nn.Linear. ValueError for an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        activation: Activation | str | None = None,
        **_: object,
    ):
        super().__init__()
        self.activation = activation_name(activation)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn.Linear does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1]) if self.weight.shape[1] > 0 else 0
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.fused_linear(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, activation={self.activation}"


__all__ = ["FusedLinear"]
