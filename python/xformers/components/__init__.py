"""Layers around attention, at the addresses where xFormers had them."""

from .activations import Activation, build_activation
from .feedforward import FusedMLP
from .positional_embedding import RotaryEmbedding

__all__ = ["Activation", "FusedMLP", "RotaryEmbedding", "build_activation"]
