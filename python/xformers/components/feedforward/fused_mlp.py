"""A feed-forward layer whose bias, activation and dropout are one pass each."""

import torch
from torch import nn

from xformers._activation import Activation
from xformers.triton.dropout import FusedDropoutBias


class FusedMLP(nn.Module):
    """Linear, bias + activation + dropout, Linear, bias + dropout: exactly one bias per layer.

    Of inputs [..., dim_model]; the hidden width is `hidden_layer_multiplier * dim_model`. The feed-forward layer of
    "Attention Is All You Need" (Vaswani et al., arXiv:1706.03762, section 3.3). Errors are those of FusedDropoutBias.
    """

    requires_cuda = False
    requires_squared_context = False

    def __init__(
        self,
        dim_model: int,
        dropout: float,
        activation: Activation | str | None,
        hidden_layer_multiplier: int,
        bias: bool = True,
        *_: object,
        **__: object,
    ):
        super().__init__()
        dim_mlp = hidden_layer_multiplier * dim_model
        self.dim_model = dim_model
        self.mlp = nn.Sequential(
            nn.Linear(dim_model, dim_mlp, bias=False),
            FusedDropoutBias(p=dropout, bias_shape=dim_mlp if bias else None, activation=activation),
            nn.Linear(dim_mlp, dim_model, bias=False),
            FusedDropoutBias(p=dropout, bias_shape=dim_model if bias else None, activation=None),
        )

    def init_weights(self, *_: object, **__: object) -> None:
        """Biases to zeros."""
        for layer in self.mlp:
            if isinstance(layer, FusedDropoutBias):
                layer.init_weights()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.mlp(inputs)


__all__ = ["FusedMLP"]
