"""Configs of hierarchical models: stages of fewer and fewer, wider and wider tokens, as of "MetaFormer" (Yu et al.,
arXiv:2111.11418)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from xformers.components import ResidualNormStyle
from xformers.factory.block_configs import member


class BasicLayerConfig(NamedTuple):
    """One stage: patches of `patch_size`, `stride` apart, padded by `padding`, then `repeat_layer` layers on `seq_len`
    tokens of width `embedding`."""

    embedding: int
    attention_mechanism: str
    patch_size: int
    stride: int
    padding: int
    seq_len: int
    feedforward: str
    normalization: str = "layernorm"
    repeat_layer: int = 1


def get_hierarchical_configuration(
    layer_base_configs: Sequence[BasicLayerConfig],
    residual_norm_style: ResidualNormStyle | str = "pre",
    use_rotary_embeddings: bool = True,
    mlp_multiplier: int = 4,
    in_channels: int = 3,
    dim_head: int | None = None,
) -> list[dict[str, Any]]:
    """Encoder configs for `xFormer`, one a layer. A stage's channels are the embedding of the one before.

    Positions are learnt. Heads: embedding // dim_head, which must divide it (AssertionError); one without dim_head.
    """
    style = member(ResidualNormStyle, residual_norm_style, "residual_norm_style")
    result: list[dict[str, Any]] = []
    for stage in layer_base_configs:
        heads = 1
        if dim_head is not None:
            assert stage.embedding % dim_head == 0, (
                f"get_hierarchical_configuration: embedding is {stage.embedding}, expected a multiple of dim_head = "
                f"{dim_head}.  Fix: choose another dim_head, or None for one head."
            )
            heads = stage.embedding // dim_head
        layer: dict[str, Any] = {
            "block_type": "encoder",
            "dim_model": stage.embedding,
            "use_triton": False,
            "residual_norm_style": style.value,
            "normalization": stage.normalization,
            "multi_head_config": {
                "num_heads": heads,
                "use_rotary_embeddings": use_rotary_embeddings,
                "attention": {"name": stage.attention_mechanism},
            },
            "feedforward_config": {
                "name": stage.feedforward,
                "activation": "gelu",
                "hidden_layer_multiplier": mlp_multiplier,
                "dropout": 0.0,
            },
            "position_encoding_config": {
                "name": "learnable",
                "seq_len": stage.seq_len,
                "add_class_token": False,
            },
            "patch_embedding_config": {
                "in_channels": in_channels,
                "kernel_size": stage.patch_size,
                "stride": stage.stride,
                "padding": stage.padding,
            },
        }
        in_channels = stage.embedding
        result.append(layer)
        for _ in range(stage.repeat_layer - 1):
            repeated = copy.deepcopy(layer)
            del repeated["patch_embedding_config"]
            result.append(repeated)
    return result


__all__ = ["BasicLayerConfig", "get_hierarchical_configuration"]
