"""Rotary position embeddings for packed queries with padded key-value caches."""

import torch

from .fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask


def rope_padded(
    xq: torch.Tensor,
    xk: torch.Tensor,
    xv: torch.Tensor,
    cache_k: torch.Tensor,
    cache_v: torch.Tensor,
    attn_bias: BlockDiagonalCausalWithOffsetPaddedKeysMask,
    *,
    theta: float = 10000.0,
    linear_scale: float = 1.0,
    use_dynamic_scaling: bool = False,
    dynamic_old_context_len: float = 8192.0,
    dynamic_scale_factor: float = 16.0,
    dynamic_low_freq_factor: float = 1.0,
    dynamic_high_freq_factor: float = 32.0,
    out_q: torch.Tensor | None = None,
    first_seqpos: torch.Tensor | None = None,
    seqpos: torch.Tensor | None = None,
    adjacents: bool = True,
    internal_dtype: str = "",
) -> torch.Tensor:
    """Turns queries and keys by their positions and appends keys and values to the caches, in one pass.

    xq: [1, queries, (groups,) heads, head_dim]; xk, xv: the same with their own heads, or one head `expand`ed;
    cache_k, cache_v: [1, keys, (groups,) kv heads, head_dim]. The new tokens of each sequence take the last of its
    slots in use (`attn_bias.k_seqinfo`), all other slots stay as they are.

    theta, linear_scale: pair j turns by `position * theta ** (-2 * j / head_dim) / linear_scale`.
    use_dynamic_scaling and dynamic_*: wavelengths above `old_context_len / low_freq_factor` are stretched by
        `scale_factor`, those below `old_context_len / high_freq_factor` stay, those between are interpolated.
    out_q: takes the turned queries, which are returned.
    first_seqpos: integers [batch], added to the positions of each sequence. seqpos: integers [queries], the positions.
    adjacents: pairs are (2j, 2j + 1); False: (j, j + head_dim / 2).
    internal_dtype: "" or "f32": products in fp32; "f64": in fp64. Angles are fp64 always.
    """
    if internal_dtype not in ("", "f32", "f64"):
        raise AssertionError(
            f"rope_padded: internal_dtype is {internal_dtype!r}, expected '', 'f32' or 'f64'.  Fix: name one of these."
        )
    if xq.ndim >= 2 and xq.shape[1] != attn_bias.q_seqinfo.seqstart_py[-1]:
        raise ValueError(
            f"rope_padded: xq has {xq.shape[1]} queries, expected {attn_bias.q_seqinfo.seqstart_py[-1]}, those of "
            "attn_bias.  Fix: pass the bias that the queries were packed with."
        )
    if cache_k.ndim >= 2 and cache_k.shape[1] != attn_bias.k_seqinfo.seqstart_py[-1]:
        raise ValueError(
            f"rope_padded: cache_k has {cache_k.shape[1]} keys, expected {attn_bias.k_seqinfo.seqstart_py[-1]}, those "
            "of attn_bias.  Fix: a cache holds the padding of every sequence."
        )
    arguments = (
        *(xq, xk, xv, cache_k, cache_v),
        *(attn_bias.q_seqinfo.seqstart, attn_bias.k_seqinfo.seqstart, attn_bias.k_seqinfo.seqlen),
        *(theta, linear_scale, use_dynamic_scaling, dynamic_old_context_len, dynamic_scale_factor),
        *(dynamic_low_freq_factor, dynamic_high_freq_factor, first_seqpos, seqpos, adjacents, internal_dtype),
    )
    if out_q is None:
        return torch.ops.xformers.rope_padded(*arguments)
    torch.ops.xformers.rope_padded_out(*arguments, out_q=out_q)
    return out_q


__all__ = ["rope_padded"]
