"""Layers around attention, at the addresses where xFormers had them."""

from xformers._deprecation import warn_deprecated

from .activations import Activation, build_activation
from .attention import Attention, build_attention
from .feedforward import FusedMLP
from .input_projection import InputProjection, InputProjectionConfig
from .multi_head_dispatch import MultiHeadDispatch, MultiHeadDispatchConfig, build_multi_head_attention
from .patch_embedding import PatchEmbeddingConfig, build_patch_embedding
from .positional_embedding import RotaryEmbedding
from .residual import (
    NormalizationType,
    PostNorm,
    PreNorm,
    RequiresWrappedInputs,
    Residual,
    ResidualNormStyle,
)

warn_deprecated("xformers.components")

__all__ = [
    "Activation",
    "Attention",
    "FusedMLP",
    "InputProjection",
    "InputProjectionConfig",
    "MultiHeadDispatch",
    "MultiHeadDispatchConfig",
    "NormalizationType",
    "PatchEmbeddingConfig",
    "PostNorm",
    "PreNorm",
    "RequiresWrappedInputs",
    "Residual",
    "ResidualNormStyle",
    "RotaryEmbedding",
    "build_activation",
    "build_attention",
    "build_multi_head_attention",
    "build_patch_embedding",
]
