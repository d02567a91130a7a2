"""Attention mechanisms behind one interface, by name."""

from ._registry import ATTENTION_REGISTRY, build_attention, register_attention
from .base import Attention, AttentionConfig

__all__ = ["ATTENTION_REGISTRY", "Attention", "AttentionConfig", "build_attention", "register_attention"]
