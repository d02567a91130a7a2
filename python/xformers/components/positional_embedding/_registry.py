"""The registry of positional embeddings, open to classes of the user's."""

from collections.abc import Mapping
from typing import Any

from xformers.utils import Item, build_from_registry, get_registry_decorator

from .base import PositionEmbedding, PositionEmbeddingConfig

# What `register_positional_embedding` has been given, by name: class and config class.
POSITION_EMBEDDING_REGISTRY: dict[str, Item] = {}
POSITION_EMBEDDING_CLASS_NAMES: set[str] = set()

# @register_positional_embedding("name", ConfigClass)
register_positional_embedding = get_registry_decorator(
    POSITION_EMBEDDING_REGISTRY, POSITION_EMBEDDING_CLASS_NAMES, PositionEmbedding, PositionEmbeddingConfig
)


def build_positional_embedding(config: Mapping[str, Any] | PositionEmbeddingConfig) -> PositionEmbedding:
    """The embedding that `config` names, a dict (which stays as it is) or a config dataclass; as `build_attention`."""
    return build_from_registry(POSITION_EMBEDDING_REGISTRY, "positional_embedding", config)


__all__ = [
    "POSITION_EMBEDDING_CLASS_NAMES",
    "POSITION_EMBEDDING_REGISTRY",
    "build_positional_embedding",
    "register_positional_embedding",
]
