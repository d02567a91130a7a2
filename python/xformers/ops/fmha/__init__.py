"""Memory-efficient attention: `softmax(scale * query key^T + attn_bias) value`, without the score matrix in memory."""

from typing import Any

import torch

from . import attn_bias
from .attn_bias import (
    AttentionBias,
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

_attention_forward = torch.ops.xformers.attention_forward.default
_attention_backward = torch.ops.xformers.attention_backward.default
_draw_philox_state = torch.ops.xformers.draw_philox_state.default

Bias = torch.Tensor | AttentionBias | None


def memory_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
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
        attn_bias: ``None``; a bias class of ``xformers.ops.fmha.attn_bias``; or a tensor
            ``[batch, (groups, heads,) seqlen_q, seqlen_k]`` in the query's dtype, added to the scores (any strides,
            may hold -inf, may require grad), or of booleans, True where a query attends.
        p: probability of dropping an attention weight. Applied whenever it is not 0: there is no training flag.
        scale: factor of the scores; ``head_dim ** -0.5`` by default.
        op: must be None, or a pair of None: the library chooses the kernel.
        output_dtype: must be None or the query's dtype.

    Returns: the output, contiguous, in the query's layout. A query that sees no key gets 0. Differentiable in query,
    key, value and a tensor bias. Wrong arguments raise a ValueError that says what came, what was expected and how to
    fix it.
    """
    if op is not None or output_dtype is not None:
        _refuse_choices(op, output_dtype, query)
    return _attention(query, key, value, attn_bias, p, scale, False)[0]


def memory_efficient_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`memory_efficient_attention` that never records gradients."""
    with torch.no_grad():
        return memory_efficient_attention(query, key, value, attn_bias, p, scale, op=op, output_dtype=output_dtype)


def memory_efficient_attention_forward_requires_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (out, lse), what `memory_efficient_attention_backward` asks for, and records no gradient itself.

    lse is the natural log-sum-exp of the scores: ``[batch, heads, seqlen_q]``, 5-D ``[batch, groups, heads,
    seqlen_q]``, 3-D ``[batch, 1, seqlen_q]``; fp32, fp64 for fp64 inputs; -inf where a query sees no key.
    """
    _refuse_dropout(p)
    if op is not None or output_dtype is not None:
        _refuse_choices(op, output_dtype, query)
    with torch.no_grad():
        return _attention(query, key, value, attn_bias, 0.0, scale, True)


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
    op: Any = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, from the gradient of the output and what the forward returned."""
    _refuse_dropout(p)
    if op is not None:
        _refuse_choices(op, None, query)
    if lse.shape[-1] > query.shape[1]:  # rows may be padded
        lse = lse[..., : query.shape[1]]
    operands = _operands(query, attn_bias)
    with torch.no_grad():
        return _attention_backward(grad, query, key, value, output, lse, *operands, scale=scale)[:3]


def _operands(query: torch.Tensor, attn_bias: Bias) -> tuple[Any, ...]:
    """What a bias lowers to: the operator's arguments after value, up to where they are the defaults."""
    if attn_bias is None:
        return ()
    if isinstance(attn_bias, torch.Tensor):
        return (attn_bias,)
    if isinstance(attn_bias, AttentionBias):
        if query.ndim == 3 and not attn_bias._TAKES_3D:
            raise ValueError(
                f"attention: query.ndim is 3 beside a {type(attn_bias).__name__}, expected 4 or 5.  "
                "Fix: use [batch, seqlen, heads, head_dim]; 3-D inputs take a tensor or a LowerTriangularMask."
            )
        return attn_bias._operands(query.device)
    raise ValueError(
        f"attention: attn_bias is a {type(attn_bias).__name__}, expected None, a tensor or an AttentionBias.  "
        "Fix: see xformers.ops.fmha.attn_bias."
    )


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Bias,
    p: float,
    scale: float | None,
    need_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    operands = _operands(query, attn_bias) if attn_bias is not None else ()
    # Each argument that is passed costs time, so defaults are left out.
    if p == 0.0 and scale is None and not need_lse:
        return _attention_forward(query, key, value, *operands)
    options = {}
    if scale is not None:
        options["scale"] = scale
    if need_lse:
        options["need_lse"] = True
    if p != 0.0:
        options["p"] = p
        if 0 < p <= 1:  # the operator refuses the rest
            options["philox_state"] = _draw_philox_state()
    return _attention_forward(query, key, value, *operands, **options)


def _refuse_dropout(p: float) -> None:
    if p != 0.0:
        raise NotImplementedError(
            f"attention: p is {p}, expected 0.  Fix: use memory_efficient_attention, which keeps the dropout mask from "
            "forward to backward."
        )


def _refuse_choices(op: Any, output_dtype: torch.dtype | None, query: torch.Tensor) -> None:
    if op is not None and not (isinstance(op, tuple) and all(part is None for part in op)):
        raise ValueError(f"attention: op is {op}, expected None.  Fix: leave it out; the library chooses the kernel.")
    if output_dtype is not None and output_dtype != query.dtype:
        raise ValueError(
            f"attention: output_dtype is {output_dtype}, expected {query.dtype} like the query's.  "
            "Fix: leave it out, and convert the result with .to(dtype)."
        )


__all__ = [
    "AttentionBias",
    "BlockDiagonalCausalMask",
    "BlockDiagonalMask",
    "LocalAttentionFromBottomRightMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
    "attn_bias",
    "memory_efficient_attention",
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
]
