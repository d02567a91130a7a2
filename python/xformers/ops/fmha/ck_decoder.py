"""Decoding on AMD GPUs. The name exists everywhere; this library does not build it."""

from ..common import get_xformers_operator, register_operator
from ._engine import NotBuiltForward


@register_operator
class FwOp(NotBuiltForward, contract="ck_decoderF"):
    """Not built: `apply` raises, and `not_supported_reasons` says so."""

    OPERATOR = get_xformers_operator("efficient_attention_forward_decoder_ck")
