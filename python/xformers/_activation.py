"""The names of activations."""

from enum import Enum


class Activation(str, Enum):
    """What fused layers can apply."""

    SquaredReLU = "squared_relu"  # relu(x) ** 2: "Primer" (So et al., arXiv:2109.08668)
    GeLU = "gelu"  # Hendrycks and Gimpel, arXiv:1606.08415
    LeakyReLU = "leaky_relu"  # x, or 0.01 x below 0
    ReLU = "relu"
    SmeLU = "smelu"  # "Smooth activations and reproducibility in deep networks" (Shamir et al., arXiv:2010.09931)
    StarReLU = "star_relu"  # "MetaFormer Baselines for Vision" (Yu et al., arXiv:2210.13452)


def activation_name(activation: Activation | str | None) -> str | None:
    """As operators take it. ValueError for an unknown name."""
    if activation is None:
        return None
    try:
        return Activation(activation).value
    except ValueError:
        names = ", ".join(member.value for member in Activation)
        raise ValueError(f"activation is {activation!r}, expected None or one of {names}.  Fix: choose one.") from None
