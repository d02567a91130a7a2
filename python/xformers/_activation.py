"""The names of activations."""

from enum import Enum


class Activation(str, Enum):
    """What fused layers can apply."""

    SquaredReLU = "squared_relu"
    GeLU = "gelu"
    LeakyReLU = "leaky_relu"
    ReLU = "relu"
    SmeLU = "smelu"
    StarReLU = "star_relu"


def activation_name(activation: Activation | str | None) -> str | None:
    """As operators take it."""
    if activation is None:
        return None
    try:
        return Activation(activation).value
    except ValueError:
        names = ", ".join(member.value for member in Activation)
        raise ValueError(f"activation is {activation!r}, expected None or one of {names}.  Fix: choose one.") from None
