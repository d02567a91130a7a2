"""Feed-forward layers."""

from .fused_mlp import FusedMLP

__all__ = ["FusedMLP"]
