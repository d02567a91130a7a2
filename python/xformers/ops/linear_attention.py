"""Attention without a softmax, linear in the number of tokens."""

from __future__ import annotations

import torch


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None = None,
    *,
    paired: bool = False,
    log_decay: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    causal: bool = False,
    normalize: bool = True,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`out_i = sum_j w_ij v_j`, divided by `sum_j w_ij` if `normalize`, over all j or, `causal`, j <= i. Weights are
    products of features, `w_ij = exp(g_(j+1) + ... + g_i) q'_i . k'_j`, g being `log_decay` (Katharopoulos et al.,
    arXiv:2006.16236; Sun et al., arXiv:2307.08621; Dao & Gu, arXiv:2405.21060).

    Arguments:
        q: [batch, seqlen_q, heads, head_dim], fp32, bf16, fp16 or fp64; any strides.
        k: [batch, seqlen_k, heads, head_dim]; causal or packed, seqlen_k is seqlen_q.
        v: [batch, seqlen_k, heads, head_dim_v].
        omega: [head_dim, features]: then x = head_dim^(-1/4) q, or k, becomes exp(x omega - |x|^2 / 2) /
            sqrt(features) (Choromanski et al., arXiv:2009.14794), tile by tile: features never lie in memory. It has
            no gradient. None: q and k are the features.
        paired: exp of both signs of x omega side by side; omega is [head_dim, features / 2].
        log_decay: [batch, seqlen, heads], causal alone; -inf starts afresh.
        state: [sequences, heads, features, head_dim_v], what came before: sum_j exp(..) k'_j v_j^T; with `normalize`
            one column more, which sums the features. fp32 (fp64 for fp64).
        cu_seqlens: int32 [sequences + 1], the offsets of sequences packed into a batch of 1.
        return_state: also the state with these tokens in it, decayed to the last of them. With it another token
            costs O(features * head_dim_v).

    Returns [batch, seqlen_q, heads, head_dim_v] in q's dtype, and the state if it was asked for. Sums in fp32, also
    under autocast. A row whose weights add up to 0 is 0. Differentiable in q, k, v, log_decay and state.
    ValueError where the arguments do not fit each other.
    """
    out, _denominator, final_state = torch.ops.xformers.linear_attention(
        q, k, v, omega, log_decay, state, cu_seqlens, paired, causal, normalize, return_state
    )
    return (out, final_state) if return_state else out


__all__ = ["linear_attention"]
