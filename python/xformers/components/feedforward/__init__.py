"""Feed-forward layers."""

from ._registry import FEEDFORWARD_REGISTRY, build_feedforward, register_feedforward
from .base import Feedforward, FeedforwardConfig
from .conv_mlp import Conv2DFeedforward
from .fused_mlp import FusedMLP
from .mixture_of_experts import MixtureOfExperts
from .mlp import MLP

__all__ = [
    "FEEDFORWARD_REGISTRY",
    "Conv2DFeedforward",
    "Feedforward",
    "FeedforwardConfig",
    "FusedMLP",
    "MLP",
    "MixtureOfExperts",
    "build_feedforward",
    "register_feedforward",
]
