"""Classifiers of sequences, and of pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from xformers.components.attention.sparsity_config import BigBirdSparsityConfig
from xformers.factory import xFormer

from .settings import attention_options


def _needed(attention: str, seq_len: int, heads: int) -> dict[str, Any]:
    """What an attention can't be built without and config.json does not say."""
    if attention == "global":
        flags = torch.zeros(seq_len, 1, dtype=torch.bool)
        flags[0] = True
        return {"attention_query_mask": flags}
    if attention == "blocksparse":
        block = 16
        layout = BigBirdSparsityConfig(heads, block).make_layout(-(-seq_len // block) * block)
        return {"layout": layout, "block_size": block}
    return {}


class SequenceClassifier(nn.Module):
    """int64 ids [batch, seq_len], 0 is padding, to logits [batch, classes]; of pairs with `dual`.

    pooling "cls": the last number of the vocabulary comes first, the last token falls out. "mean": of all tokens; those
    of padding are 0 and count.
    """

    def __init__(self, settings: Mapping[str, Any], attention: str):
        super().__init__()
        model, common = settings["model"], settings["model"]["common"]
        self.pooling, self.dual = model["pooling_mode"], model.get("dual", False)
        self.class_token = common["vocab_size"] - 1
        dim, heads, seq_len = common["dim_model"], common["num_heads"], common["seq_len"]
        mechanism = {
            "name": attention,
            "dropout": common["dropout"],
            "causal": False,
            "seq_len": seq_len,
            "dim_head": dim // heads,
            "num_rules": heads,
            **_needed(attention, seq_len, heads),
            **attention_options(settings, attention),
        }
        self.encoder = xFormer(
            [
                {
                    "block_type": "encoder",
                    "num_layers": common["num_layers"],
                    "dim_model": dim,
                    "residual_norm_style": common["residual_norm_style"],
                    "reversible": common.get("reversible", False),
                    "position_encoding_config": {
                        "name": "vocab",
                        "seq_len": seq_len,
                        "vocab_size": common["vocab_size"],
                        "dropout": common["dropout"],
                    },
                    "multi_head_config": {
                        "num_heads": heads,
                        "residual_dropout": common["dropout"],
                        "attention": mechanism,
                    },
                    "feedforward_config": {
                        "name": "MLP",
                        "dropout": common["dropout"],
                        "activation": "gelu",
                        "hidden_layer_multiplier": common["mlp_multiplier"],
                    },
                }
            ]
        )
        self.head = nn.Sequential(
            nn.Linear(dim * (4 if self.dual else 1), common["mlp_multiplier"] * dim),
            nn.ReLU(),
            nn.Linear(common["mlp_multiplier"] * dim, model["num_classes"]),
        )

    def pooled(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, dim]"""
        if self.pooling == "cls":
            ids = torch.cat([ids.new_full((len(ids), 1), self.class_token), ids[:, :-1]], 1)
        mask = ids != 0
        x = self.encoder(ids, encoder_input_mask=mask)
        x = x * mask.unsqueeze(-1)
        return x[:, 0] if self.pooling == "cls" else x.mean(1)

    def forward(self, ids: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x = self.pooled(ids)
        if self.dual:
            assert other is not None, "a dual model takes two sequences"
            y = self.pooled(other)
            x = torch.cat([x, y, x * y, x - y], -1)
        logits: torch.Tensor = self.head(x)
        return logits
