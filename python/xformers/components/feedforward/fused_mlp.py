"""A feed-forward layer whose bias, activation and dropout are one pass each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._activation import Activation
from xformers.triton.dropout import FusedDropoutBias

from ._registry import register_feedforward
from .base import Feedforward, FeedforwardConfig
from .mlp import take_state_of_other_form


@dataclass
class FusedMlpConfig(FeedforwardConfig):
    """Options of FusedMLP."""

    hidden_layer_multiplier: int
    bias: bool


@register_feedforward("FusedMLP", FusedMlpConfig)
class FusedMLP(Feedforward):
    """Linear, bias + activation + dropout, Linear, bias + dropout: exactly one bias per layer.

    Of inputs [..., dim_model]; the hidden width is `hidden_layer_multiplier * dim_model`. gelu is the tanh form. State
    dicts of MLP load. The feed-forward layer of "Attention Is All You Need" (Vaswani et al., arXiv:1706.03762, section
    3.3). Errors are those of FusedDropoutBias.
    """

    def __init__(
        self,
        dim_model: int,
        dropout: float = 0.0,
        activation: Activation | str | None = None,
        hidden_layer_multiplier: int = 4,
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        take_state_of_other_form(state_dict, prefix, fused=True)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        first, act, last, dropped = self.mlp
        if type(first) is not nn.Linear or type(last) is not nn.Linear or act.p != dropped.p:
            out: torch.Tensor = self.mlp(inputs)
            return out
        p = act.p if self.training else 0.0
        return torch.ops.xformers.mlp(inputs, first.weight, act.bias, last.weight, dropped.bias, act.activation, p)


__all__ = ["FusedMLP", "FusedMlpConfig"]
