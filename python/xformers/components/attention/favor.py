"""Attention estimated by random features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig
from .feature_maps import FeatureMap, FeatureMapConfig, FeatureMapType, SMHyperbolic, SMOrf, SMReg
from .feature_maps.softmax import SoftMaxMap

_MAPS: dict[FeatureMapType, type[SoftMaxMap]] = {
    FeatureMapType.SMOrf: SMOrf,
    FeatureMapType.SMHyp: SMHyperbolic,
    FeatureMapType.SMReg: SMReg,
}


@dataclass
class FavorAttentionConfig(AttentionConfig):
    """Options of `FavorAttention`, by name; what they mean is said there. None: its default."""

    causal: bool | None
    dim_features: int | None
    dim_head: int | None
    iter_before_redraw: int | None
    feature_map: FeatureMapConfig | FeatureMap | None
    feature_map_type: FeatureMapType | str | None


@register_attention("favor", FavorAttentionConfig)
class FavorAttention(Attention):
    """out_i = sum over j of (q'_i . k'_j) v_j / sum over j of q'_i . k'_j with random features q', k': Performers,
    Choromanski et al., arXiv:2009.14794. All j, or with `causal` those up to i.

    Arguments:
        dim_features: by default the even number from dim_head (1 + log2 dim_head) on. One of it and dim_head is
            required (AssertionError).
        iter_before_redraw: the calls after which new directions are drawn; never, if None.
        feature_map_type: "sm_reg", "sm_hyp" or "sm_orf".
        feature_map: an SMReg, SMHyperbolic or SMOrf (or derived) in its place, or a config whose name is one of these
            types.

    One map serves queries and keys: `xformers.ops.linear_attention` makes their features tile by tile, in fp32 also
    under autocast, and again in backward. Dropout acts on the result. No masks.
    """

    _takes_heads = True

    def __init__(
        self,
        causal: bool = False,
        dropout: float = 0.0,
        dim_features: int | None = None,
        dim_head: float | None = None,
        iter_before_redraw: int | None = None,
        feature_map_type: FeatureMapType | str = FeatureMapType.SMReg,
        feature_map: FeatureMapConfig | FeatureMap | None = None,
        normalize_inputs: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        self.causal = causal
        self.attn_drop = nn.Dropout(dropout)
        self.supports_attention_mask = False
        if isinstance(feature_map, FeatureMap):
            self.feature_map: FeatureMap = feature_map
            return
        if feature_map is not None:
            feature_map_type = FeatureMapType(feature_map.name) if feature_map.name else feature_map_type
            dim_features = feature_map.dim_features or dim_features
            iter_before_redraw = feature_map.iter_before_redraw or iter_before_redraw
            normalize_inputs = bool(feature_map.normalize_inputs)
        if dim_features is None:
            assert dim_head is not None, (
                "favor: dim_features and dim_head are both None, expected one of them.  Fix: give dim_head, of which "
                "the number of features follows."
            )
            dim_features = math.ceil(dim_head * (1 + math.log2(dim_head)))
            dim_features += dim_features % 2
        self.feature_map_type = FeatureMapType(feature_map_type)
        self.feature_map = _MAPS[self.feature_map_type](
            dim_features, iter_before_redraw=iter_before_redraw, normalize_inputs=normalize_inputs
        )

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        feature_map = self.feature_map
        assert isinstance(feature_map, SoftMaxMap), (
            f"favor: feature_map is a {type(feature_map).__name__}, expected an SMOrf, SMHyperbolic or SMReg.  Fix: "
            "derive your map from one of them; draw() chooses the directions."
        )
        omega = feature_map.prepare(k)
        out = torch.ops.xformers.favor_attention(q, k, v, omega, feature_map.paired, self.causal)
        return self.attn_drop(out)


__all__ = ["FavorAttention", "FavorAttentionConfig"]
