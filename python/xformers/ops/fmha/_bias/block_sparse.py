"""Blocks of the score matrix that are computed; all others cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .base import CAUSAL, CAUSAL_BOTTOM_RIGHT, FULL, AttentionBias, Band, Device, LoweredBias, altered, check_window

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BlockSparseMask"]

BlockSize = int | tuple[int, int]
# key offsets, key blocks, query offsets, query blocks, bits_of, bits: the block_* fields of a LoweredBias
Lists = tuple[torch.Tensor | None, ...]


@dataclass(eq=False, init=False)
class BlockSparseMask(AttentionBias):
    """Query i sees key j only where block (i // block_q, j // block_k) is visible: attention computes these blocks,
    forward and backward, and no others. A band, a tensor that is added, and after `from_mask` the elements of a
    block, narrow it further. A query that sees no key gets 0.

    Arguments:
        layout: bool or integer (not 0: visible), ``[nq, nk]``, ``[H, nq, nk]`` or ``[B, H, nq, nk]``; B or H may be
            1. nq is ceil(seqlen_q / block_q), nk likewise: the last blocks may be short. H is the number of query
            heads (5-D inputs: groups x heads per group, or the groups alone).
        block_size: one number, or (queries, keys), each a multiple of 16 up to 1024.
        device: where the lists are kept, that of the layout by default.

    Raises: ValueError for other sizes and, when attention is called, for a layout that does not cover the inputs.
    NotImplementedError for packed and paged keys.

    Of tensors on a GPU lists are made there, and the host waits for nothing: numbers out of range, here and in the
    other constructors, are then clamped instead of refused.
    """

    block_size: tuple[int, int]
    _key_offsets: torch.Tensor
    _key_blocks: torch.Tensor
    _query_offsets: torch.Tensor
    _query_blocks: torch.Tensor
    _bits_of: torch.Tensor | None
    _bits: torch.Tensor | None
    _bias: torch.Tensor | None
    _band: Band

    _TAKES_3D = True

    def __init__(self, layout: torch.Tensor, block_size: BlockSize, *, device: Device = None) -> None:
        size = _both(block_size)
        self.__dict__.update(_fields(torch.ops.xformers._bias_blocks_of_layout(layout), device))
        self.block_size, self._bias, self._band = size, None, FULL

    @classmethod
    def _from_lists(cls, lists: Lists, block_size: tuple[int, int]) -> Self:
        mask = cls.__new__(cls)
        mask.__dict__.update(_fields(lists, None))
        mask.block_size, mask._bias, mask._band = block_size, None, FULL
        return mask

    def _lists(self) -> Lists:
        return tuple(getattr(self, name) for name in _LISTS)

    @classmethod
    def from_indices(
        cls,
        indices: torch.Tensor,
        counts: torch.Tensor | None = None,
        *,
        num_key_blocks: int,
        block_size: BlockSize,
    ) -> Self:
        """Of key blocks per query block, as a top-k selection gives them: `indices` ``[B or 1, H or 1, nq, m]``,
        int32 or int64, in any order; entries that come again count once. `counts` ``[B or 1, H or 1, nq]`` says how
        many of the m there are; without it negative entries are none. ValueError for an index that is not below
        `num_key_blocks`, or a count above m."""
        size = _both(block_size)
        return cls._from_lists(torch.ops.xformers._bias_blocks_of_indices(indices, counts, num_key_blocks), size)

    @classmethod
    def from_bsr(
        cls, row_offsets: torch.Tensor, columns: torch.Tensor, *, num_key_blocks: int, block_size: BlockSize
    ) -> Self:
        """Of compressed rows of blocks, as torch.sparse_bsr has them: `row_offsets` ``[(B, H,) nq + 1]``, `columns`
        ``[(B, H,) nnz]``. ValueError where offsets fall, or a column is out of range."""
        size = _both(block_size)
        return cls._from_lists(torch.ops.xformers._bias_blocks_of_bsr(row_offsets, columns, num_key_blocks), size)

    @classmethod
    def from_mask(cls, mask: Any, block_size: BlockSize = 64) -> Self:
        """Exactly the elements of a bool mask ``[S, T]``, ``[H, S, T]`` or ``[B, H, S, T]``, or of a sparse one that
        has `to_dense`: blocks that are full, blocks that hold a bit for each element, and nothing for empty ones."""
        if not isinstance(mask, torch.Tensor) or mask.layout != torch.strided:
            mask = mask.to_dense() != 0
        size = _both(block_size)
        return cls._from_lists(torch.ops.xformers._bias_blocks_of_mask(mask, *size), size)

    @classmethod
    def from_config(cls, config: Any, seq_len: int) -> Self:
        """The layout of a `SparsityConfig` (xformers.components.attention.sparsity_config) for `seq_len` tokens, a
        multiple of its block_size (ValueError)."""
        return cls(config.make_layout(seq_len), config.block_size)

    @classmethod
    def from_flex(cls, block_mask: Any) -> Self:
        """Of a BlockMask of torch.nn.attention.flex_attention: its full blocks, and its partial ones element by
        element, as its mask_mod says. ValueError where its blocks are no multiples of 16."""
        size = _both(tuple(block_mask.BLOCK_SIZE))
        seqlen_q, seqlen_k = block_mask.seq_lengths
        layout, elements = _flex_blocks(block_mask, size, seqlen_q, seqlen_k)
        return cls._from_lists(torch.ops.xformers._bias_blocks_of_layout(layout, elements), size)

    def make_causal(self) -> Self:
        """The same blocks, and no key behind the query: j <= i. The lists are shared."""
        return altered(self, _band=CAUSAL)

    def make_causal_from_bottomright(self) -> Self:
        """The same, aligned so that the last query sees every key: j <= i + nk - nq."""
        return altered(self, _band=CAUSAL_BOTTOM_RIGHT)

    def make_local_attention(self, window_size: int) -> Self:
        """The same, causal from the corner in use, the diagonal and the `window_size` - 1 keys before it. ValueError
        unless it is 1 or more."""
        check_window(window_size)
        return altered(self, _band=(window_size - 1, 0, self._band[2]))

    def add_bias(self, bias: torch.Tensor) -> Self:
        """The same, and a tensor ``[batch, (groups, heads,) seqlen_q, seqlen_k]`` in the query's dtype added to the
        scores; gradients flow to it."""
        return altered(self, _bias=bias)

    def to(self, device: Device) -> Self:
        """The same with its lists on another device."""
        bias = self._bias if self._bias is None else self._bias.to(device)
        return altered(self, **_fields(self._lists(), device), _bias=bias)

    def density(self) -> torch.Tensor:
        """Visible blocks / all blocks, an fp32 tensor of no dimensions; bands and elements of blocks don't count."""
        return torch.ops.xformers._bias_block_density(self._key_offsets, self._key_blocks, self._query_offsets)

    @property
    def layout(self) -> torch.Tensor:
        """bool ``[B, H, nq, nk]``."""
        return torch.ops.xformers._bias_block_layout(self._key_offsets, self._key_blocks, self._query_offsets)

    def lower(self, device: torch.device) -> LoweredBias:
        lists = self._lists()
        if self._key_offsets.device != device:
            lists = tuple(_fields(lists, device).values())
        key_offsets, key_blocks, query_offsets, query_blocks, bits_of, bits = lists
        block_q, block_k = self.block_size
        return LoweredBias(
            self._bias,
            *self._band,
            block_key_offsets=key_offsets,
            block_keys=key_blocks,
            block_query_offsets=query_offsets,
            block_queries=query_blocks,
            block_bits_of=bits_of,
            block_bits=bits,
            block_q=block_q,
            block_k=block_k,
        )


_LISTS = ("_key_offsets", "_key_blocks", "_query_offsets", "_query_blocks", "_bits_of", "_bits")


def _both(block_size: BlockSize | Sequence[int]) -> tuple[int, int]:
    """(queries, keys). ValueError unless multiples of 16 up to 1024."""
    sizes = [block_size] if isinstance(block_size, int) else list(block_size)
    torch.ops.xformers._bias_check_block_size(sizes)
    return sizes[0], sizes[-1]


def _fields(lists: Lists, device: Device) -> dict[str, Any]:
    """Lists as fields, on a device if one is given."""
    moved = lists if device is None else (x if x is None else x.to(device) for x in lists)
    return dict(zip(_LISTS, moved, strict=True))


def _flex_blocks(
    block_mask: Any, size: tuple[int, int], seqlen_q: int, seqlen_k: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(layout [B, H, nq, nk] of 0, 1 (full) and 2 (partial), elements [partial blocks, block_q, block_k])."""
    nq, nk = -(-seqlen_q // size[0]), -(-seqlen_k // size[1])
    layout = torch.zeros(
        (*block_mask.kv_indices.shape[:2], nq, nk), dtype=torch.int64, device=block_mask.kv_indices.device
    )
    for value, counts, indices in (
        (2, block_mask.kv_num_blocks, block_mask.kv_indices),
        (1, block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
    ):
        if counts is not None:
            used = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
            b, h, q, i = used[:, :, :nq].nonzero(as_tuple=True)
            layout[b, h, q, indices[b, h, q, i].long()] = value
    b, h, q, k = (layout == 2).nonzero(as_tuple=True)
    if len(b) == 0:
        return layout, None
    queries = q[:, None] * size[0] + torch.arange(size[0], device=q.device)
    keys = k[:, None] * size[1] + torch.arange(size[1], device=k.device)
    sees = block_mask.mask_mod
    for dims in ((None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0)):  # keys, queries, blocks
        sees = torch.vmap(sees, in_dims=dims)
    inside = (queries < seqlen_q)[:, :, None] & (keys < seqlen_k)[:, None, :]
    return layout, sees(b, h, queries.clamp(max=seqlen_q - 1), keys.clamp(max=seqlen_k - 1)) & inside
