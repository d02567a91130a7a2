"""The registry of feed-forward layers, open to classes of the user's."""

from collections.abc import Mapping
from typing import Any

from xformers.utils import Item, build_from_registry, get_registry_decorator

from .base import Feedforward, FeedforwardConfig

# What `register_feedforward` has been given, by name: class and config class.
FEEDFORWARD_REGISTRY: dict[str, Item] = {}
FEEDFORWARD_CLASS_NAMES: set[str] = set()

# @register_feedforward("name", ConfigClass)
register_feedforward = get_registry_decorator(
    FEEDFORWARD_REGISTRY, FEEDFORWARD_CLASS_NAMES, Feedforward, FeedforwardConfig
)


def build_feedforward(config: Mapping[str, Any] | FeedforwardConfig) -> Feedforward:
    """The layer that `config` names, a dict (which stays as it is) or a config dataclass; as `build_attention`."""
    return build_from_registry(FEEDFORWARD_REGISTRY, "feedforward", config)


__all__ = ["FEEDFORWARD_CLASS_NAMES", "FEEDFORWARD_REGISTRY", "build_feedforward", "register_feedforward"]
