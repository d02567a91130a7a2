"""Attention over parts of the keys, and putting the parts together."""

from collections.abc import Sequence

import torch

from ._explicit import with_operators
from ._fast import attention, refuse_dropout
from ._lower import Bias
from .common import AttentionFwOpBase, AttentionOp, Inputs


def memory_efficient_attention_partial(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: AttentionOp | type[AttentionFwOpBase] | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a part of the keys: (out, lse), of which `merge_attentions` makes attention over all of them.

    out is fp32 (fp64 for fp64 inputs) unless `output_dtype` says otherwise; gradients flow through both. Packed
    sequences have lse ``[1, heads, total]``."""
    refuse_dropout(p)
    inp = Inputs(query, key, value, attn_bias, p, scale, output_dtype, is_partial=True)
    if op is not None:
        return with_operators(inp, op, need_lse=True)
    return attention(query, key, value, attn_bias, 0.0, scale, inp.get_output_dtype(), True)[:2]


def merge_attentions(
    attn_split: torch.Tensor | Sequence[torch.Tensor],
    lse_split: torch.Tensor | Sequence[torch.Tensor],
    write_lse: bool = True,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over all keys, from attention over disjoint parts of them.

    Arguments:
        attn_split: outputs ``[batch, seqlen_q, (groups,) heads, head_dim]``, as a sequence or stacked along a new first
            dimension.
        lse_split: their log-sum-exps ``[batch, (groups,) heads, seqlen_q]``, likewise.
        write_lse: whether the log-sum-exp over all keys is wanted; gradients need it.
        output_dtype: dtype of the output, that of the parts by default.

    Returns: (out, lse), or (out, None). A part with lse -inf is left out, whatever its output holds. Differentiable in
    every part's output and lse.
    """
    out, lse = torch.ops.xformers.merge_attentions(_parts(attn_split), _parts(lse_split), write_lse, output_dtype)
    return out, lse if write_lse else None


def _parts(split: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not isinstance(split, torch.Tensor):
        return list(split)
    if split.ndim == 0:
        raise ValueError(
            "merge_attentions: a stacked tensor has shape [], expected [parts, batch, ...].  Fix: torch.stack(parts)."
        )
    return list(torch.ops.xformers.unbind(split, 0))
