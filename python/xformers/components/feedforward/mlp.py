"""The feed-forward layer of transformers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers._activation import Activation, activation_name
from xformers.components.activations import build_activation

from ._registry import register_feedforward
from .base import Feedforward, FeedforwardConfig


@dataclass
class MlpConfig(FeedforwardConfig):
    """Options of MLP."""

    hidden_layer_multiplier: int
    bias: bool


def take_state_of_other_form(state_dict: dict[str, Any], prefix: str, fused: bool) -> None:
    """Names of a state dict in place: MLP has mlp.{0,3}.{weight,bias}, FusedMLP mlp.{0,2}.weight and mlp.{1,3}.bias."""
    plain_names, fused_names = ("mlp.0.bias", "mlp.3.weight"), ("mlp.1.bias", "mlp.2.weight")
    given, wanted = (plain_names, fused_names) if fused else (fused_names, plain_names)
    for old, new in zip(given, wanted, strict=True):
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


@register_feedforward("MLP", MlpConfig)
class MLP(Feedforward):
    """Linear, activation, dropout, Linear, dropout, of inputs `[..., dim_model]`.

    The hidden width is `hidden_layer_multiplier * dim_model`. gelu is the exact one (erf). Bias, activation and dropout
    are one pass, and backward keeps the first product alone. Layers of `mlp` that were replaced run as they are. State
    dicts of FusedMLP load. From "Attention Is All You Need" (Vaswani et al., arXiv:1706.03762, section 3.3).
    ValueError for an unknown activation.
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
        self.activation = activation_name(activation)
        self.mlp = nn.Sequential(
            nn.Linear(dim_model, dim_mlp, bias=bias),
            build_activation(activation),
            nn.Dropout(dropout),
            nn.Linear(dim_mlp, dim_model, bias=bias),
            nn.Dropout(dropout),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        take_state_of_other_form(state_dict, prefix, fused=False)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        layers: Any = self.mlp
        first, _act, dropped, last, dropped_last = layers
        if type(first) is not nn.Linear or type(last) is not nn.Linear or dropped.p != dropped_last.p:
            out: torch.Tensor = self.mlp(inputs)
            return out
        activation = "gelu_exact" if self.activation == Activation.GeLU.value else self.activation
        p = float(dropped.p) if self.training else 0.0
        return torch.ops.xformers.mlp(inputs, first.weight, first.bias, last.weight, last.bias, activation, p)


__all__ = ["MLP", "MlpConfig"]
