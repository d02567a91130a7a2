"""The contract "cutlass": all dtypes but fp64, any head_dim, additive bias and its gradient; its lse is padded to
multiples of 32 and, for packed sequences, to the longest."""

import torch

from ..common import get_xformers_operator, register_operator
from ._engine import Backward, Forward
from .common import Context, Inputs


@register_operator
class BwOp(Backward, contract="cutlassB"):
    """The backward of the contract "cutlass": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_xformers_operator("efficient_attention_backward_cutlass")


@register_operator
class FwOp(Forward, contract="cutlassF"):
    """The forward of the contract "cutlass": docs/ops/attention-operators.md, `not_supported_reasons`."""

    OPERATOR = get_xformers_operator("efficient_attention_forward_cutlass")
    _BACKWARD = BwOp

    @classmethod
    def apply_bmhk(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        """`apply` for [batch, seqlen, heads, head_dim]."""
        return cls.apply(inp, needs_gradient)
