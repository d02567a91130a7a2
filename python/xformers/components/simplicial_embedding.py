"""Embeddings on simplices."""

from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass
class SimplicialEmbeddingConfig:
    """Options of SimplicialEmbedding."""

    L: int
    temperature: float | None = None


class SimplicialEmbedding(nn.Module):
    """The last dimension of `x [..., dim]` in L chunks, each `softmax(chunk / temperature)`.

    ValueError where L does not divide the dimension. The caller's tensor stays as it is. From "Simplicial Embeddings in
    Self-Supervised Learning" (Lavoie et al., arXiv:2204.00616).
    """

    def __init__(self, L: int, temperature: float | None = None, *_: object, **__: object):  # noqa: N803
        super().__init__()
        self.L = L
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.xformers.simplicial_embedding(x, self.L, self.temperature)

    @classmethod
    def from_config(cls, config: SimplicialEmbeddingConfig) -> "SimplicialEmbedding":
        """With the config's fields."""
        return cls(**asdict(config))


__all__ = ["SimplicialEmbedding", "SimplicialEmbeddingConfig"]
