"""Random features whose products estimate the exponential of a product."""

from enum import Enum

from .base import FeatureMap, FeatureMapConfig
from .softmax import NormDistribution, SMHyperbolic, SMOrf, SMReg


class FeatureMapType(str, Enum):
    """The maps by name."""

    SMOrf = "sm_orf"
    SMHyp = "sm_hyp"
    SMReg = "sm_reg"


__all__ = [
    "FeatureMap",
    "FeatureMapConfig",
    "FeatureMapType",
    "NormDistribution",
    "SMHyperbolic",
    "SMOrf",
    "SMReg",
]
