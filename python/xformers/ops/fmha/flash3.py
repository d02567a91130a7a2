"""The contract "flash3": fp16 and bf16 on Hopper, head_dim 64, 128 or 256, packed lse."""

from ..common import get_operator, register_operator
from ._engine import Backward, Forward


@register_operator
class BwOp(Backward, contract="fa3B"):
    """The backward of the contract "flash3": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_operator("xformers_flash3", "flash_bwd")
    VERSION: str


@register_operator
class FwOp(Forward, contract="fa3F"):
    """The forward of the contract "flash3": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_operator("xformers_flash3", "flash_fwd")
    VERSION: str
    _BACKWARD = BwOp


FLASH_VERSION = FwOp.VERSION
