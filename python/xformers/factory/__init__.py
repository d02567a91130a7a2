"""Models built from plain data."""

from .block_configs import xFormerDecoderConfig, xFormerEncoderConfig
from .block_factory import xFormerDecoderBlock, xFormerEncoderBlock
from .model_factory import xFormer, xFormerConfig
from .weight_init import xFormerWeightInit

__all__ = [
    "xFormer",
    "xFormerConfig",
    "xFormerDecoderBlock",
    "xFormerDecoderConfig",
    "xFormerEncoderBlock",
    "xFormerEncoderConfig",
    "xFormerWeightInit",
]
