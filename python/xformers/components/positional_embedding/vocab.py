"""Words with learnt positions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._registry import register_positional_embedding
from .base import PositionEmbedding, PositionEmbeddingConfig


@dataclass
class VocabEmbeddingConfig(PositionEmbeddingConfig):
    """Options of VocabEmbedding."""

    vocab_size: int
    dropout: float


@register_positional_embedding("vocab", VocabEmbeddingConfig)
class VocabEmbedding(PositionEmbedding):
    """`dropout(word + position)` of ids `[batch, up to seq_len]`, int32 or int64: `[batch, seqlen, dim_model]`.

    Both tables begin as N(0, 0.02). ValueError for longer sequences and other dtypes."""

    def __init__(self, dim_model: int, seq_len: int, vocab_size: int, dropout: float = 0.0, *_: object, **__: object):
        super().__init__()
        self.vocab_size = vocab_size
        self.dim_model = dim_model
        self.dropout = nn.Dropout(dropout)
        self.position_embeddings = nn.Embedding(seq_len, dim_model)
        self.word_embeddings = nn.Embedding(vocab_size, dim_model)
        self.init_weights()

    def init_weights(self, gain: float = 1.0, *_: object, **__: object) -> None:
        """N(0, 0.02 * gain)."""
        nn.init.normal_(self.position_embeddings.weight, std=0.02 * gain)
        nn.init.normal_(self.word_embeddings.weight, std=0.02 * gain)

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        p = self.dropout.p if self.training else 0.0
        words, positions = self.word_embeddings.weight, self.position_embeddings.weight
        return torch.ops.xformers.vocab_embedding(x, words, positions, float(p))


__all__ = ["VocabEmbedding", "VocabEmbeddingConfig"]
