"""Attention under masks of every kind: none, dense, wrapped, sparse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from xformers.ops import masked_matmul

from ._masks import Mask, attend, is_coo, unwrapped, with_values
from ._sputnik_sparse import SparseCS
from .attention_mask import AttentionMask

Dropout = Callable[[torch.Tensor], torch.Tensor]


def scaled_dot_product_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    att_mask: Mask | None = None,
    dropout: Dropout | None = None,
    block_size: int = 128,
) -> torch.Tensor:
    """dropout(softmax(q k^T / sqrt(head_dim) + mask)) v, for q, k, v `[N, seqlen, head_dim]` or
    `[batch, heads, seqlen, head_dim]`.

    att_mask, `[seqlen_q, seqlen_k]` or with a first dimension of 1, N or a divisor of it, where every mask belongs to
    N / divisor consecutive elements (the heads of a batch element):

    - `AttentionMask`, or a dense tensor: bool (True attends) or added;
    - `SparseCS`: where it has values; floating ones are added;
    - a sparse COO tensor: bool, where it has values; floating, its values are added and all keys are seen.

    Sparse masks are computed in fp32 (fp64 for fp64), outside of autocast, and so is their result. A causal
    `AttentionMask` gives a result in q's dtype, under autocast too. A row that sees nothing is 0.

    Scores are never stored, unless `dropout` is something else than `nn.Dropout`: any callable is given the weights. Of
    sparse masks these are their stored values. `block_size` has no effect.
    """
    if att_mask is not None and att_mask.is_sparse:
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = (t if t.dtype == torch.float64 else t.float() for t in (q, k, v))
            return _attention(q, k, v, att_mask, dropout)
    out = _attention(q, k, v, att_mask, dropout)
    if isinstance(att_mask, AttentionMask) and att_mask.is_causal and q.shape[-2] == k.shape[-2]:
        return out.to(q.dtype)
    return out


def blocksparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: Dropout | None = None, block_size: int = 128
) -> torch.Tensor:
    """Causal attention of q, k, v as above, in q's dtype: the causal kernel, for any length, dtype and device."""
    causal = AttentionMask.make_causal(q.shape[-2], k.shape[-2], device=q.device)
    return scaled_dot_product_attention(q, k, v, causal, dropout, block_size)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask | None, dropout: Dropout | None
) -> torch.Tensor:
    if dropout is not None and type(dropout) is not nn.Dropout:
        if q.ndim == 4:
            folded = _attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask, dropout)
            return torch.unflatten(folded, 0, q.shape[:2])
        return bmm(_apply_dropout(scaled_query_key_softmax(q, k, mask), dropout), v)
    p = dropout.p if dropout is not None and dropout.training else 0.0
    if q.ndim == 4:  # [batch, seqlen, heads, head_dim] for the operators
        return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, p=p).transpose(1, 2)
    return attend(q, k, v, mask, p=p)


def scaled_query_key_softmax(q: torch.Tensor, k: torch.Tensor, att_mask: Any) -> Any:
    """The weights alone, softmax(q k^T / sqrt(head_dim) + mask): a `SparseCS`, a sparse COO tensor (of bool ones), or
    dense. They are stored: `scaled_dot_product_attention` needs no such matrix."""
    if isinstance(att_mask, SparseCS) or (is_coo(att_mask) and att_mask.dtype == torch.bool):
        return _softmax(_matmul_with_mask(q / math.sqrt(q.shape[-1]), k.transpose(-2, -1), att_mask))
    tensor, causal = unwrapped(att_mask, q.shape[-2], k.shape[-2])
    if q.ndim == 4:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return torch.ops.xformers.attention_weights(q, k, tensor, causal)


def bmm(a: Any, b: torch.Tensor) -> torch.Tensor:
    """a @ b of batches; a may be a `SparseCS` or a sparse COO tensor. Differentiable in both."""
    if isinstance(a, SparseCS):
        return a.spmm(b)
    return _sparse_bmm(a, b) if is_coo(a) else a @ b


def _matmul_with_mask(a: torch.Tensor, b: torch.Tensor, mask: Any) -> Any:
    """a @ b where a sparse mask has values, floating ones of a `SparseCS` added; beside any other mask as masked_matmul
    does, all of it."""
    if isinstance(mask, SparseCS):
        scores = mask.matmul_with_mask(a, b)
        return scores if mask.dtype == torch.bool else with_values(scores, scores.values + mask.values)
    if is_coo(mask) and mask.dtype == torch.bool:
        return torch.ops.xformers.matmul_with_mask(a, b, _broadcast_batch(mask, a.shape[0]))
    return masked_matmul(a, b, mask.to_dense() if is_coo(mask) else mask)


def _softmax(a: Any, causal: bool = False) -> Any:
    """Over the last dimension; of sparse ones over the values of a row."""
    if isinstance(a, SparseCS):
        return a.softmax()
    return torch.ops.xformers.coo_softmax(a.coalesce()) if is_coo(a) else torch.ops.xformers.softmax(a, None, causal)


def _apply_dropout(att: Any, dropout: Dropout | None) -> Any:
    """On the stored values of sparse weights, on all of dense ones."""
    if dropout is None:
        return att
    if isinstance(att, SparseCS):
        return with_values(att, dropout(att.values))
    if att.is_sparse:
        att = att.coalesce()
        return torch.sparse_coo_tensor(
            att.indices(), dropout(att.values()), att.shape, is_coalesced=True, check_invariants=False
        )
    return dropout(att)


def _sparse_bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sparse COO `[N, m, k]` @ `[N, k, n]`, differentiable in both."""
    return torch.ops.xformers.coo_bmm(a.coalesce(), b)


def _broadcast_batch(mask: torch.Tensor, batch_size: int) -> torch.Tensor:
    """A sparse COO `[m, n]` for every batch element; one that has a batch stays."""
    return torch.stack([mask] * batch_size).coalesce() if mask.ndim == 2 else mask


def _create_random_sparsity(matrix: torch.Tensor, sparsity: float, divisible_by: int = 4) -> torch.Tensor:
    """matrix `[N, m, n]` with a share `sparsity` of its places set to 0, the same for all of N; what remains is a
    multiple of `divisible_by`."""
    assert matrix.ndim == 3, f"matrix has shape {list(matrix.shape)}, expected [N, m, n].  Fix: give it a batch."
    kept = (torch.rand(matrix.shape[1:], device=matrix.device) > sparsity).flatten().nonzero().flatten()
    keep = torch.zeros(matrix[0].numel(), dtype=torch.bool, device=matrix.device)
    keep[kept[: len(kept) - len(kept) % divisible_by]] = True
    return matrix * keep.view(matrix.shape[1:])


__all__ = [
    "SparseCS",
    "blocksparse_attention",
    "bmm",
    "scaled_dot_product_attention",
    "scaled_query_key_softmax",
]
