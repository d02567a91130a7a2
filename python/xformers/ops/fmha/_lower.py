"""A bias as the operator's arguments."""

from typing import Any

import torch

from ._bias.subtensor import LowerTriangularMask, LowerTriangularMaskWithTensorBias, lower_mask
from .attn_bias import VARLEN_BIASES, AttentionBias, LoweredBias

Bias = torch.Tensor | AttentionBias | None
NO_CAP = 0  # an int, which compilers take for a constant, where 0.0 would be a number that may change
_BLOCKS = LoweredBias._fields[9:]
MASKS = (LowerTriangularMask, LowerTriangularMaskWithTensorBias)


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
        lowered = _lowered(query, attn_bias)
        _, _, _, bottom_right, cu_seqlens_q, cu_seqlens_k, seqused_k, page_table, page_size = lowered[:9]
        if page_table is not None:
            return lowered[:7], {"page_table": page_table, "page_size": page_size}
        if lowered.block_key_offsets is not None:
            return lowered[:4], dict(zip(_BLOCKS, lowered[9:], strict=True))
        # Each argument that is passed costs time, so defaults are left out.
        if cu_seqlens_q is None and cu_seqlens_k is None and seqused_k is None:
            return lowered[: 4 if bottom_right else 3], {}
        return lowered[: 6 if seqused_k is None else 7], {}
    if isinstance(attn_bias, torch.Tensor):
        return (attn_bias,), {}
    raise ValueError(
        f"attention: attn_bias is a {type(attn_bias).__name__}, expected None, a tensor or an AttentionBias.  "
        "Fix: see xformers.ops.fmha.attn_bias."
    )


def _lowered(query: torch.Tensor, attn_bias: AttentionBias) -> LoweredBias:
    cls = type(attn_bias)
    if cls in MASKS:
        return lower_mask(attn_bias)  # type: ignore[arg-type]
    return cls.lower(attn_bias, query.device)  # of the class: Dynamo looks for methods of tensors among PyTorch's


def dense_of(query: torch.Tensor, attn_bias: Bias) -> torch.Tensor | None:
    """What is added to the scores, if there is any."""
    if isinstance(attn_bias, AttentionBias):
        return _lowered(query, attn_bias).scores
    return attn_bias


def modifiers(softcap: float, alibi_slopes: torch.Tensor | None, sinks: torch.Tensor | None) -> dict[str, Any]:
    """What is done to scores, as far as something is."""
    given: dict[str, Any] = {}
    if softcap != 0.0:
        given["softcap"] = softcap
    if alibi_slopes is not None:
        given["alibi_slopes"] = alibi_slopes
    if sinks is not None:
        given["sinks"] = sinks
    return given


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
