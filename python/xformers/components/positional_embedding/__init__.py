"""Positional embeddings."""

from .rotary import RotaryEmbedding

__all__ = ["RotaryEmbedding"]
