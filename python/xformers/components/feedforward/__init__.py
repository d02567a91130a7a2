"""Feed-forward layers."""

from ._registry import FEEDFORWARD_REGISTRY, build_feedforward, register_feedforward
from .base import Feedforward, FeedforwardConfig
from .fused_mlp import FusedMLP

__all__ = [
    "FEEDFORWARD_REGISTRY",
    "Feedforward",
    "FeedforwardConfig",
    "FusedMLP",
    "build_feedforward",
    "register_feedforward",
]
