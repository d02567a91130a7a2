"""Positional embeddings."""

from ._registry import POSITION_EMBEDDING_REGISTRY, build_positional_embedding, register_positional_embedding
from .base import PositionEmbedding, PositionEmbeddingConfig
from .rotary import RotaryEmbedding

__all__ = [
    "POSITION_EMBEDDING_REGISTRY",
    "PositionEmbedding",
    "PositionEmbeddingConfig",
    "RotaryEmbedding",
    "build_positional_embedding",
    "register_positional_embedding",
]
