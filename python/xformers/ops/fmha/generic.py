"""The operator that takes everything: every bias, dtype, head_dim and layout. It closes the list of the dispatcher."""

from ..common import get_xformers_operator, register_operator
from ._engine import Backward, Forward


@register_operator
class BwOp(Backward, contract="genericB"):
    """The backward that takes everything. Same errors as `memory_efficient_attention_backward`."""

    OPERATOR = get_xformers_operator("attention_backward")


@register_operator
class FwOp(Forward, contract="genericF"):
    """The forward that takes everything. Same errors as `memory_efficient_attention`."""

    OPERATOR = get_xformers_operator("attention_forward")
    _BACKWARD = BwOp
