"""Positional embeddings."""

from ._registry import POSITION_EMBEDDING_REGISTRY, build_positional_embedding, register_positional_embedding
from .base import PositionEmbedding, PositionEmbeddingConfig
from .param import LearnablePositionalEmbedding
from .rotary import RotaryEmbedding
from .sine import SinePositionalEmbedding
from .vocab import VocabEmbedding

__all__ = [
    "POSITION_EMBEDDING_REGISTRY",
    "LearnablePositionalEmbedding",
    "PositionEmbedding",
    "PositionEmbeddingConfig",
    "RotaryEmbedding",
    "SinePositionalEmbedding",
    "VocabEmbedding",
    "build_positional_embedding",
    "register_positional_embedding",
]
