"""Attention mechanisms behind one interface, by name."""

import torch

from ._registry import ATTENTION_REGISTRY, build_attention, register_attention
from ._sputnik_sparse import SparseCS
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

_DENSITY_THRESHOLD = 0.30  # above which maybe_sparsify keeps a mask dense
_USE_SPUTNIK = True


def sparsify(matrix: torch.Tensor) -> SparseCS:
    """A mask `[S, T]` or `[B, S, T]` as a sparse one, on its device."""
    return SparseCS(matrix, matrix.device)


def maybe_sparsify(matrix: torch.Tensor) -> AttentionMask | SparseCS:
    """The same where at most a share _DENSITY_THRESHOLD of a bool mask is True, else an AttentionMask."""
    if torch.count_nonzero(matrix).item() > matrix.numel() * _DENSITY_THRESHOLD:
        return AttentionMask.from_bool(matrix)
    return sparsify(matrix)


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
    "maybe_sparsify",
    "register_attention",
    "sparsify",
]
