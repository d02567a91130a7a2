"""Activations by name."""

import torch
from torch import nn

from xformers._activation import Activation, activation_name


class _Fused(nn.Module):
    """One of the operator's activations."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.bias_act_dropout(x, activation=self.name)

    def extra_repr(self) -> str:
        return self.name


def build_activation(activation: Activation | str | None) -> nn.Module:
    """The activation as a module; None gives the identity. gelu is the exact one, unlike in the fused layers.
    ValueError for an unknown name."""
    name = activation_name(activation)
    if name is None:
        return nn.Identity()
    return nn.GELU() if name == Activation.GeLU else _Fused(name)


__all__ = ["Activation", "build_activation"]
