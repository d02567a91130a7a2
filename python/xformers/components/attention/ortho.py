"""Attention through a few queries that are as different as possible."""

import warnings
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


class LandmarkSelection(str, Enum):
    """How landmarks are chosen."""

    Orthogonal = "orthogonal"  # greedily, by the cosine
    KMeans = "kmeans"
    KMeans_Spherical = "kmeans_spherical"
    Random = "random"  # half of them from the keys


@dataclass
class OrthoformerAttentionConfig(AttentionConfig):
    """Options of `OrthoFormerAttention`, by name; what they mean is said there. None: its default."""

    num_landmarks: int | None
    subsample_fraction: float | None
    landmark_selection: LandmarkSelection | None


@register_attention("orthoformer", OrthoformerAttentionConfig)
class OrthoFormerAttention(Attention):
    """softmax(q L^T) softmax(L k^T) v with landmarks L: Patrick et al., arXiv:2106.05392.

    No more queries than landmarks: exact attention. Landmarks are drawn anew in every call, and get no gradient. A mask
    has no effect, and is warned about.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        num_landmarks: int = 32,
        subsample_fraction: float = 1.0,
        landmark_selection: LandmarkSelection | str = LandmarkSelection.Orthogonal,
        *_: object,
        **__: object,
    ):
        super().__init__()
        assert num_landmarks > 0, (
            f"orthoformer: num_landmarks is {num_landmarks}, expected at least 1.  Fix: 32 is usual."
        )
        self.num_landmarks = num_landmarks
        self.attn_drop = nn.Dropout(dropout)
        self.subsample_fraction = subsample_fraction
        self.landmark_selection = LandmarkSelection(landmark_selection)
        self.supports_attention_mask = False

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        att_mask: object = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        if att_mask is not None:
            warnings.warn("orthoformer: att_mask has no effect; the landmarks stand for all tokens", stacklevel=2)
        p = self.attn_drop.p if self.training else 0.0
        how = self.landmark_selection.value
        return torch.ops.xformers.orthoformer_attention(q, k, v, self.num_landmarks, self.subsample_fraction, how, p)


__all__ = ["LandmarkSelection", "OrthoFormerAttention", "OrthoformerAttentionConfig"]
