"""Operators for AMD GPUs. Their names exist everywhere; this library does not build them."""

from ..common import get_xformers_operator, register_operator
from ._engine import NotBuiltBackward, NotBuiltForward


@register_operator
class FwOp(NotBuiltForward, contract="ckF"):
    """Not built: `apply` raises, and `not_supported_reasons` says so."""

    OPERATOR = get_xformers_operator("efficient_attention_forward_ck")


@register_operator
class BwOp(NotBuiltBackward, contract="ckB"):
    """Not built: `apply` raises, and `not_supported_reasons` says so."""

    OPERATOR = get_xformers_operator("efficient_attention_backward_ck")
