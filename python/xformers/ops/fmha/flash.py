"""The contract "flash": fp16 and bf16, head_dim up to 256, packed lse."""

from ..common import get_operator, register_operator
from ._engine import Backward, Forward


@register_operator
class BwOp(Backward, contract="fa2B"):
    """The backward of the contract "flash": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_operator("xformers_flash", "flash_bwd")
    VERSION: str
    MAX_HEADDIM_DROPOUT_SM8x = 224


@register_operator
class FwOp(Forward, contract="fa2F"):
    """The forward of the contract "flash": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_operator("xformers_flash", "flash_fwd")
    VERSION: str
    _BACKWARD = BwOp


FLASH_VERSION = FwOp.VERSION
