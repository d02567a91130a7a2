"""The feed-forward layer of convolutional mixers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._activation import Activation, activation_name
from xformers.components.activations import build_activation

from ._registry import register_feedforward
from .base import Feedforward, FeedforwardConfig


@dataclass
class ConvMlpConfig(FeedforwardConfig):
    """Options of Conv2DFeedforward."""

    hidden_layer_multiplier: int
    dim_model_out: int | None
    act_layer: Activation  # as `activation`


@register_feedforward("Conv2DFeedforward", ConvMlpConfig)
class Conv2DFeedforward(Feedforward):
    """1x1 convolution, depthwise 3x3 convolution, activation, 1x1 convolution, dropout, over a square grid of tokens
    `[batch, side * side, dim_model]`, row by row.

    The first axis of the 3x3 filters runs along the columns of the grid, as upstream's did. gelu is the exact one.
    AssertionError for a number of tokens that is no square. From "PVT v2" (Wang et al., arXiv:2106.13797).
    """

    def __init__(
        self,
        dim_model: int,
        hidden_layer_multiplier: int = 1,
        dim_model_out: int | None = None,
        activation: Activation | str | None = Activation.GeLU,
        dropout: float = 0.0,
        *_: object,
        bias: bool = True,
        act_layer: Activation | str | None = None,
        **__: object,
    ):
        super().__init__()
        out_features, hidden = dim_model_out or dim_model, hidden_layer_multiplier * dim_model
        self.requires_squared_context = True
        self.activation = activation_name(act_layer or activation)
        self.conv_mlp = nn.Sequential(
            nn.Conv2d(dim_model, hidden, 1, bias=bias),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=bias),
            build_activation(self.activation),
            nn.Conv2d(hidden, out_features, 1, bias=bias),
            nn.Dropout(dropout),
        )

    def init_weights(self, *_: object, **__: object) -> None:
        """Weights N(0, sqrt(2 / fan_out)), biases zero."""
        for layer in self.conv_mlp:
            if isinstance(layer, nn.Conv2d):
                fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
                nn.init.normal_(layer.weight, 0, math.sqrt(2.0 / fan_out))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        layers: Any = self.conv_mlp
        first, depth, _act, last, dropped = layers
        tokens = inputs.shape[1]
        assert math.isqrt(tokens) ** 2 == tokens, (
            f"Conv2DFeedforward: the number of tokens is {tokens}, expected a square, since they are those of a square "
            "grid.  Fix: pad the sequence, or use another feed-forward layer."
        )
        p = float(dropped.p) if self.training else 0.0
        return torch.ops.xformers.conv2d_feedforward(
            inputs, first.weight, first.bias, depth.weight, depth.bias, last.weight, last.bias, self.activation, p
        )


__all__ = ["Conv2DFeedforward", "ConvMlpConfig"]
