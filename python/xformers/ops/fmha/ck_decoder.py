"""Decoding on AMD GPUs. The name exists everywhere; this library does not build it."""

import torch

from ..common import get_xformers_operator, register_operator
from ._engine import not_built
from .common import AttentionFwOpBase, Context, Inputs


@register_operator
class FwOp(AttentionFwOpBase, contract="ck_decoderF"):
    OPERATOR = get_xformers_operator("efficient_attention_forward_decoder_ck")

    @classmethod
    def apply(cls, inp: Inputs, needs_gradient: bool) -> tuple[torch.Tensor, Context | None]:
        raise not_built(cls.NAME, "gradient" if needs_gradient else "forward")
