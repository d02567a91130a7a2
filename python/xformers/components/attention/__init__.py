"""Attention mechanisms behind one interface, by name."""

from ._registry import ATTENTION_REGISTRY, build_attention, register_attention
from .attention_mask import AttentionMask
from .base import Attention, AttentionConfig
from .blocksparse import BlockSparseAttention
from .compositional import CompositionalAttention
from .favor import FavorAttention
from .fourier_mix import FourierMix
from .global_tokens import GlobalAttention
from .lambda_layer import LambdaLayer
from .linformer import LinformerAttention
from .local import LocalAttention
from .nystrom import NystromAttention
from .ortho import OrthoFormerAttention
from .pooling import Pooling
from .random import RandomAttention
from .scaled_dot_product import ScaledDotProduct
from .visual import Visual

__all__ = [
    "ATTENTION_REGISTRY",
    "Attention",
    "AttentionConfig",
    "AttentionMask",
    "BlockSparseAttention",
    "CompositionalAttention",
    "FavorAttention",
    "FourierMix",
    "GlobalAttention",
    "LambdaLayer",
    "LinformerAttention",
    "LocalAttention",
    "NystromAttention",
    "OrthoFormerAttention",
    "Pooling",
    "RandomAttention",
    "ScaledDotProduct",
    "Visual",
    "build_attention",
    "register_attention",
]
