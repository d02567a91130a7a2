"""The registry of attentions, open to classes of the user's."""

from collections.abc import Mapping
from typing import Any

from xformers.utils import Item, build_from_registry, get_registry_decorator

from .base import Attention, AttentionConfig

# What `register_attention` has been given, by name: class and config class.
ATTENTION_REGISTRY: dict[str, Item] = {}
ATTENTION_CLASS_NAMES: set[str] = set()

# @register_attention("name", ConfigClass)
register_attention = get_registry_decorator(ATTENTION_REGISTRY, ATTENTION_CLASS_NAMES, Attention, AttentionConfig)


def build_attention(config: Mapping[str, Any] | AttentionConfig) -> Attention:
    """The attention that `config` names, a dict (which stays as it is) or a config dataclass.

    Options that are missing or None take the defaults of the class. An unknown name is a KeyError; an unknown option is
    warned about, once, with the nearest name."""
    return build_from_registry(ATTENTION_REGISTRY, "attention", config)


__all__ = ["ATTENTION_CLASS_NAMES", "ATTENTION_REGISTRY", "build_attention", "register_attention"]
