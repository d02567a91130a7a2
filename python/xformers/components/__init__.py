"""Layers around attention, at the addresses where xFormers had them."""

from xformers._deprecation import warn_deprecated

from .activations import Activation, build_activation
from .attention import Attention, build_attention
from .feedforward import FusedMLP
from .positional_embedding import RotaryEmbedding

warn_deprecated("xformers.components")

__all__ = ["Activation", "Attention", "FusedMLP", "RotaryEmbedding", "build_activation", "build_attention"]
