"""The contract "flash": fp16 and bf16, head_dim up to 256, packed lse."""

from ..common import get_operator, register_operator
from ._engine import Backward, Forward


@register_operator
class BwOp(Backward, contract="fa2B"):
    OPERATOR = get_operator("xformers_flash", "flash_bwd")
    VERSION: str
    MAX_HEADDIM_DROPOUT_SM8x = 224


@register_operator
class FwOp(Forward, contract="fa2F"):
    OPERATOR = get_operator("xformers_flash", "flash_fwd")
    VERSION: str
    _BACKWARD = BwOp


FLASH_VERSION = FwOp.VERSION
