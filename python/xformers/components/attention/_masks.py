"""Masks as the library's operators take them, and attention under any of them."""

from __future__ import annotations

from typing import Any

import torch

from xformers.ops.fmha.attn_bias import BlockSparseMask

from ._sputnik_sparse import SparseCS
from .attention_mask import AttentionMask

Mask = AttentionMask | SparseCS | torch.Tensor


def is_coo(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.is_sparse


def with_values(mask: SparseCS, values: torch.Tensor) -> SparseCS:
    """Others in the places of the mask."""
    return SparseCS.wrap(mask.shape, values, mask.row_indices, mask.row_offsets, mask.column_indices, mask._transp_info)


def places_of(mask: SparseCS) -> torch.Tensor:
    """bool `[S, T]`, True where the mask has values, be they 0."""
    return with_values(mask, torch.ones_like(mask.values[:1], dtype=torch.float32)).to_dense()[0] != 0


def blocks_of(mask: SparseCS) -> BlockSparseMask:
    """Where the mask has values, in blocks with a bit per element; made once, and kept with the mask."""
    kept = vars(mask)
    if "_blocks" not in kept:
        kept["_blocks"] = BlockSparseMask.from_mask(places_of(mask))
    blocks: BlockSparseMask = kept["_blocks"]
    return blocks


def unwrapped(mask: Mask | None, seqlen_q: int, seqlen_k: int) -> tuple[torch.Tensor | None, bool]:
    """(the mask as a dense tensor, whether it is j <= i instead)"""
    if isinstance(mask, AttentionMask):
        return (None, True) if mask._is_band(seqlen_q, seqlen_k) else (mask.values, False)
    if isinstance(mask, SparseCS):
        dense = mask.to_dense()
        return (dense if dense.dtype == torch.bool else dense.masked_fill(~places_of(mask), -torch.inf)), False
    return (mask.to_dense() if is_coo(mask) else mask), False  # type: ignore[union-attr]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Mask | None,
    key_padding_mask: torch.Tensor | None = None,
    causal: bool = False,
    p: float = 0.0,
) -> torch.Tensor:
    """The operator, q, k, v with heads or folded; its weights dropped with probability p."""
    if isinstance(mask, SparseCS) and q.device.type == "cpu":
        blocks, added = blocks_of(mask), None if mask.dtype == torch.bool else mask.to_dense()
        lists, sizes = blocks._lists(), blocks.block_size
        return torch.ops.xformers.block_sparse_attention(
            q, k, v, *lists, *sizes, added, key_padding_mask, causal, None, p
        )
    tensor, band = unwrapped(mask, q.shape[1], k.shape[1])
    return torch.ops.xformers.scaled_dot_product(q, k, v, tensor, key_padding_mask, causal or band, p)


__all__ = ["Mask", "attend", "blocks_of", "is_coo", "unwrapped", "with_values"]
