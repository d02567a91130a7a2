"""Memory-efficient attention: `softmax(scale * query key^T + attn_bias) value`, without the score matrix in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import attn_bias, ck, ck_decoder, ck_splitk, common, cutlass, dispatch, flash, flash3, generic, triton_splitk
from ._call import _memory_efficient_attention_backward as _memory_efficient_attention_backward
from ._call import _memory_efficient_attention_forward as _memory_efficient_attention_forward
from ._call import (
    _memory_efficient_attention_forward_requires_grad as _memory_efficient_attention_forward_requires_grad,
)
from ._call import attention, refuse_dropout, refuse_sinks, with_operators
from ._lower import NO_CAP, Bias, modifiers
from .attn_bias import *  # noqa: F403  (bias classes by their short address)
from .common import (
    AttentionBwOpBase,
    AttentionFwOpBase,
    AttentionOp,
    AttentionOpBase,
    Context,
    Gradients,
    Inputs,
    bmk2bmhk,
)
from .dispatch import _dispatch_bw as _dispatch_bw
from .dispatch import _dispatch_fw as _dispatch_fw
from .dispatch import _get_use_fa3 as _get_use_fa3
from .dispatch import _set_use_fa3 as _set_use_fa3

# Pairs of operator classes, forward and backward, for `op`; those with Ck are not built here, and say so.
MemoryEfficientAttentionCutlassOp = (cutlass.FwOp, cutlass.BwOp)
MemoryEfficientAttentionCutlassFwdFlashBwOp = (cutlass.FwOp, flash.BwOp)
MemoryEfficientAttentionFlashAttentionOp = (flash.FwOp, flash.BwOp)
MemoryEfficientAttentionCkOp = (ck.FwOp, ck.BwOp)
MemoryEfficientAttentionSplitKCkOp = (ck_splitk.FwOp, ck.BwOp)
MemoryEfficientAttentionCkDecoderOp = (ck_decoder.FwOp, ck.BwOp)

# What the dispatcher chooses from, in its order of preference: fmha.dispatch. The generic ones take what is left.
ALL_FW_OPS: list[type[AttentionFwOpBase]] = [cutlass.FwOp, flash.FwOp, flash3.FwOp, triton_splitk.FwOp, generic.FwOp]
ALL_BW_OPS: list[type[AttentionBwOpBase]] = [cutlass.BwOp, flash.BwOp, flash3.BwOp, generic.BwOp]


def memory_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: AttentionOp | None = None,
    output_dtype: torch.dtype | None = None,
    softcap: float = NO_CAP,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention in memory that grows with the sequence, not with its square.

    Equivalent to::

        scores = scale * query @ key.transpose(-2, -1) + attn_bias      # per batch and head
        out = dropout(softmax(scores, dim=-1), p) @ value

    Arguments:
        query: ``[batch, seqlen_q, heads, head_dim]``; also ``[batch, seqlen_q, head_dim]`` and, for grouped-query
            attention with `expand`ed key and value heads, ``[batch, seqlen_q, groups, heads, head_dim]``.
        key, value: the same with seqlen_k; value may have its own head_dim. Sizes are not broadcast: use ``expand``,
            which copies nothing, here neither. fp32, bf16, fp16 and fp64, all three alike; any strides.
            int32 key and value are quantised to 4 bits, see docs/ops/attention-decoding.md.
        attn_bias: ``None``; a bias class of ``xformers.ops.fmha.attn_bias``; or a tensor
            ``[batch, (groups, heads,) seqlen_q, seqlen_k]`` in the query's dtype, added to the scores (any strides,
            may hold -inf, may require grad), or of booleans, True where a query attends.
        p: probability of dropping an attention weight. Applied whenever it is not 0: there is no training flag.
        scale: factor of the scores; ``head_dim ** -0.5`` by default.
        op: ``(forward, backward)`` operator classes, each possibly None, such as ``(fmha.flash.FwOp,
            fmha.flash.BwOp)``: their contracts are then enforced. Without it everything is supported.
        output_dtype: dtype of the output, the query's by default.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before a bias is added; 0: off.
        alibi_slopes: ``[heads]`` or ``[batch, heads]`` ([sequences, heads] where they are packed; 5-D inputs [groups,
            heads]), fp32 (fp64 for fp64 inputs): ``slope * |i + seqlen_k - seqlen_q - j|`` is taken off the score of
            query i and key j, with a band from the top-left corner ``slope * |i - j|``. No tensor of that size is made.
        sinks: likewise, also in the query's dtype: the score of one more key, without a value, that every query sees
            behind `attn_bias`; -inf: none. docs/ops/score-modifiers.md has all three, and their sources.

    Returns: the output, contiguous, in the query's layout. A query that sees no key gets 0. Differentiable in query,
    key, value, a tensor bias, slopes and sinks.

    Raises: ValueError where arguments contradict each other or a named operator does not take them, with what came,
    what was expected and how to fix it; NotImplementedError where no operator takes them.

    Computed in blocks with a running maximum and sum, the backward from the log-sum-exp: "Self-attention Does Not Need
    O(n^2) Memory" (Rabe and Staats, arXiv:2112.05682), "FlashAttention" (Dao et al., arXiv:2205.14135).
    """
    # Each function that is called costs time.
    given = {} if softcap is NO_CAP and alibi_slopes is sinks is None else modifiers(softcap, alibi_slopes, sinks)
    if op is not None:
        return with_operators(Inputs(query, key, value, attn_bias, p, scale, output_dtype, **given), op)[0]
    return attention(query, key, value, attn_bias, p, scale, output_dtype, False, given)[0]


def memory_efficient_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionFwOpBase] | None = None,
    output_dtype: torch.dtype | None = None,
    softcap: float = NO_CAP,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`memory_efficient_attention` that never records gradients; `op` is a forward operator class. Same errors."""
    given = modifiers(softcap, alibi_slopes, sinks)
    with torch.no_grad():
        if op is not None:
            return with_operators(Inputs(query, key, value, attn_bias, p, scale, output_dtype, **given), op)[0]
        return attention(query, key, value, attn_bias, p, scale, output_dtype, False, given)[0]


def memory_efficient_attention_forward_requires_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionFwOpBase] | None = None,
    output_dtype: torch.dtype | None = None,
    softcap: float = NO_CAP,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (out, lse), what `memory_efficient_attention_backward` asks for, and records no gradient itself.

    lse is the natural log-sum-exp of the scores: ``[batch, heads, seqlen_q]``, 5-D ``[batch, groups, heads,
    seqlen_q]``, 3-D ``[batch, 1, seqlen_q]``; fp32, fp64 for fp64 inputs; -inf where a query sees no key. With `op` it
    has that operator's format. Errors as `memory_efficient_attention`; NotImplementedError for p other than 0.
    """
    refuse_dropout(p)
    given = modifiers(softcap, alibi_slopes, sinks)
    with torch.no_grad():
        if op is not None:
            inp = Inputs(query, key, value, attn_bias, p, scale, output_dtype, **given)
            return with_operators(inp, op, need_lse=True)
        return attention(query, key, value, attn_bias, 0.0, scale, output_dtype, True, given)[:2]


def memory_efficient_attention_backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[AttentionBwOpBase] | None = None,
    softcap: float = NO_CAP,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, from the gradient of the output and what the forward returned. Errors as
    `memory_efficient_attention`; NotImplementedError for p other than 0, ValueError for an lse in a format of another
    operator than `op`."""
    refuse_dropout(p)
    if isinstance(attn_bias, torch.Tensor) and attn_bias.requires_grad:
        attn_bias = attn_bias.detach()  # its gradient is not returned
    inp = Inputs(query, key, value, attn_bias, p, scale, **modifiers(softcap, alibi_slopes, sinks))
    gradients = _memory_efficient_attention_backward(Context(lse=lse, out=output), inp, grad, op)
    return gradients.dq, gradients.dk, gradients.dv


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
    softcap: float = NO_CAP,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a part of the keys: (out, lse), of which `merge_attentions` makes attention over all of them.

    out is fp32 (fp64 for fp64 inputs) unless `output_dtype` says otherwise; gradients flow through both. Packed
    sequences have lse ``[1, heads, total]``. Errors as `memory_efficient_attention`; NotImplementedError for p other
    than 0, ValueError for sinks: they belong to all keys, and are added when merging, as a part with out 0 and lse
    `sinks`."""
    refuse_dropout(p)
    refuse_sinks(sinks)
    given = modifiers(softcap, alibi_slopes, None)
    inp = Inputs(query, key, value, attn_bias, p, scale, output_dtype, is_partial=True, **given)
    if op is not None:
        return with_operators(inp, op, need_lse=True)
    out_dtype = inp.get_output_dtype()
    return attention(query, key, value, attn_bias, 0.0, scale, out_dtype, True, given)[:2]


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
    every part's output and lse. ValueError where parts don't fit each other, or gradients are wanted without write_lse.
    With weights exp(lse_i - lse): "Online normalizer calculation for softmax" (Milakov and Gimelshein,
    arXiv:1805.02867).
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


__all__ = [
    "ALL_BW_OPS",
    "ALL_FW_OPS",
    "AttentionBwOpBase",
    "AttentionFwOpBase",
    "AttentionOp",
    "AttentionOpBase",
    "Context",
    "Gradients",
    "Inputs",
    "MemoryEfficientAttentionCkDecoderOp",
    "MemoryEfficientAttentionCkOp",
    "MemoryEfficientAttentionCutlassFwdFlashBwOp",
    "MemoryEfficientAttentionCutlassOp",
    "MemoryEfficientAttentionFlashAttentionOp",
    "MemoryEfficientAttentionSplitKCkOp",
    "attn_bias",
    "bmk2bmhk",
    "ck",
    "ck_decoder",
    "ck_splitk",
    "common",
    "cutlass",
    "dispatch",
    "flash",
    "flash3",
    "generic",
    "memory_efficient_attention",
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
    "memory_efficient_attention_partial",
    "merge_attentions",
    "triton_splitk",
]
if not TYPE_CHECKING:
    __all__ += [name for name in attn_bias.__all__ if not name.startswith("_")]
