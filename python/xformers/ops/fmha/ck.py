"""Operators for AMD GPUs. Their names exist everywhere; this library does not build them."""

import torch

from ..common import get_xformers_operator, register_operator
from ._engine import not_built
from .common import AttentionBwOpBase, AttentionFwOpBase, Context, Gradients, Inputs


@register_operator
class FwOp(AttentionFwOpBase, contract="ckF"):
    OPERATOR = get_xformers_operator("efficient_attention_forward_ck")

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        raise not_built(cls.NAME, "forward")

    @classmethod
    def apply_bmhk(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        """`apply` for [batch, seqlen, heads, head_dim]."""
        return cls.apply(inp, needs_gradient)


@register_operator
class BwOp(AttentionBwOpBase, contract="ckB"):
    OPERATOR = get_xformers_operator("efficient_attention_backward_ck")

    @classmethod
    def apply(cls, ctx: Context, inp: Inputs, grad: torch.Tensor) -> Gradients:
        raise not_built(cls.NAME, "backward")
