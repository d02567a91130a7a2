"""Split-K decoding on AMD GPUs. The names exist everywhere; this library does not build them."""

from ..common import get_xformers_operator, register_operator
from ._engine import NotBuiltForward


@register_operator
class FwOp(NotBuiltForward, contract="ck_splitKF"):
    """Not built: `apply` raises, and `not_supported_reasons` says so."""

    OPERATOR = get_xformers_operator("efficient_attention_forward_decoder_splitk_ck")
    SPLIT_K: int | None = None


def _of_splits(splits: int) -> type[FwOp]:
    doc = f"`FwOp` with {splits} parts of the keys. Not built either."
    attributes = {"SPLIT_K": splits, "NAME": f"ck_splitK{splits}", "__module__": __name__, "__doc__": doc}
    return type(f"FwOp_S{splits}", (FwOp,), attributes)


FwOp_S1, FwOp_S2, FwOp_S4, FwOp_S8 = (_of_splits(splits) for splits in (1, 2, 4, 8))
FwOp_S16, FwOp_S32, FwOp_S64, FwOp_S128 = (_of_splits(splits) for splits in (16, 32, 64, 128))
