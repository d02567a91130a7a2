"""A bias as the operator's arguments."""

from typing import Any

import torch

from .attn_bias import VARLEN_BIASES, AttentionBias

Bias = torch.Tensor | AttentionBias | None


def lower(query: torch.Tensor, attn_bias: Bias) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(arguments after query, key and value, as far as they differ from the defaults; further ones by name)."""
    if attn_bias is None:
        return (), {}
    if isinstance(attn_bias, AttentionBias):
        if query.ndim == 3 and not type(attn_bias)._TAKES_3D:
            raise ValueError(
                f"attention: query.ndim is 3 beside a {type(attn_bias).__name__}, expected 4 or 5.  "
                "Fix: use [batch, seqlen, heads, head_dim]; 3-D inputs take a tensor or a LowerTriangularMask."
            )
        return attn_bias._operands(query.device), attn_bias._paging(query.device)
    if isinstance(attn_bias, torch.Tensor):
        return (attn_bias,), {}
    raise ValueError(
        f"attention: attn_bias is a {type(attn_bias).__name__}, expected None, a tensor or an AttentionBias.  "
        "Fix: see xformers.ops.fmha.attn_bias."
    )


def dense_of(attn_bias: Bias) -> torch.Tensor | None:
    """What is added to the scores, if there is any."""
    if isinstance(attn_bias, AttentionBias):
        return attn_bias._subtensor if type(attn_bias).HOLDS_DENSE_TENSOR else None  # type: ignore[attr-defined]
    return attn_bias


def query_lengths(attn_bias: Bias) -> list[int]:
    """Host lengths of packed queries; empty where there is one sequence per batch row."""
    return attn_bias.q_seqinfo._lengths_py() if isinstance(attn_bias, VARLEN_BIASES) else []


def bias_name(bias: Any) -> str:
    """The class name, if it is exactly one of ours; a subclass elsewhere is another type."""
    if bias is None:
        return "None"
    cls = type(bias)
    if cls.__module__ == AttentionBias.__module__:
        return cls.__name__
    if isinstance(bias, torch.Tensor) and not isinstance(bias, AttentionBias):
        return "Tensor"
    return f"{cls.__module__}.{cls.__qualname__}"
