"""Positive features for softmax attention: Choromanski et al., arXiv:2009.14794."""

from __future__ import annotations

from enum import Enum, auto

import torch

from .base import FeatureMap


class NormDistribution(Enum):
    """How long the rows of random orthogonal matrices are."""

    Xi = auto()  # as rows of normal numbers
    Uniform = auto()  # 1


class SoftMaxMap(FeatureMap):
    """exp(x omega + o) with o = -|x|^2 / 2 - log(dim_features) / 2 + epsilon and x scaled by head_dim^(-1/4);
    `normalize_inputs` takes the largest |x|^2 of the sequence off. Computed in fp32 (fp64 for fp64 inputs)."""

    paired = False  # features of both signs of x omega
    constant_length = False  # rows of omega of length sqrt(head_dim), else of Gaussian length

    def __init__(
        self,
        dim_features: int,
        iter_before_redraw: int | None = None,
        normalize_inputs: bool = False,
        epsilon: float = 1e-6,
        *args: object,
        **options: object,
    ):
        super().__init__(dim_features, iter_before_redraw, normalize_inputs, epsilon, *args, **options)
        if self.paired:
            assert dim_features % 2 == 0, (
                f"{type(self).__name__}: dim_features is {dim_features}, expected an even number.  Fix: add one; half "
                "of the features belong to each sign."
            )
            self.dim_feature_map = dim_features // 2

    @staticmethod
    def _get_random_ortho_matrix(
        blocks: int,
        dim: int,
        device: torch.device | str,
        norm_distribution: NormDistribution = NormDistribution.Uniform,
    ) -> torch.Tensor:
        """`[blocks, dim, dim]`"""
        of_gaussian_length = norm_distribution == NormDistribution.Xi
        return torch.ops.xformers._random_orthogonal(blocks, dim, of_gaussian_length, device=device)

    def draw(self, head_dim: int, device: torch.device) -> torch.Tensor:
        """Blocks of random orthogonal matrices, one below the other."""
        return torch.ops.xformers._draw_omega(head_dim, self.dim_feature_map, self.constant_length, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        omega = self.prepare(x)
        out = torch.ops.xformers.favor_features(x, omega, self.paired, self.normalize_inputs, self.epsilon)
        return out.to(x.dtype)


class SMOrf(SoftMaxMap):
    """One feature per direction."""


class SMHyperbolic(SoftMaxMap):
    """Features of both signs of each direction; dim_features is even (AssertionError)."""

    paired = True


class SMReg(SoftMaxMap):
    """The same, with directions of one length."""

    paired = True
    constant_length = True


__all__ = ["NormDistribution", "SMHyperbolic", "SMOrf", "SMReg", "SoftMaxMap"]
