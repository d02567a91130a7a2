"""Attention over blocks of the score matrix."""

import logging
from dataclasses import dataclass

import torch
from torch import nn

from xformers.ops.fmha.attn_bias import BlockSparseMask

from ._masks import Mask, unwrapped
from ._registry import register_attention
from .base import Attention, AttentionConfig

_logger = logging.getLogger("xformers")


@dataclass
class BlockSparseAttentionConfig(AttentionConfig):
    """Options of `BlockSparseAttention`, by name; what they mean is said there. None: its default."""

    layout: torch.Tensor  # [heads, rows, columns] or [rows, columns], not 0: visible
    block_size: int
    num_heads: int
    causal: bool | None


@register_attention("blocksparse", BlockSparseAttentionConfig)
class BlockSparseAttention(Attention):
    """softmax(scale q k^T / sqrt(head_dim)) v over the blocks that a layout shows: the others are never computed,
    forward or backward, and no scores are stored.

    Arguments:
        layout: `[num_heads, rows, columns]`, as `sparsity_config` makes them; a `[rows, columns]` one is that of all
            heads, with a warning.
        block_size: of a block's rows and columns: 16, 32, 64 or 128 (AssertionError).
        causal: query i sees the keys j <= i, inside the blocks too.

    q, k, v `[batch, heads, seqlen, head_dim]`, any dtype, of as many blocks as the layout has (AssertionError); the
    last one may be short. Masks as `ScaledDotProduct` takes them, beside the layout.
    """

    layout: torch.Tensor

    def __init__(
        self,
        layout: torch.Tensor | None = None,
        block_size: int = 16,
        dropout: float = 0.0,
        num_heads: int = 1,
        causal: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        assert layout is not None, "blocksparse: layout is None, expected [heads, rows, columns].  Fix: give one."
        assert block_size in (16, 32, 64, 128), (
            f"blocksparse: block_size is {block_size}, expected 16, 32, 64 or 128.  Fix: choose one of these."
        )
        if layout.ndim == 2:
            _logger.warning("blocksparse: one layout [rows, columns] is used for all %d heads", num_heads)
            layout = layout[None].expand(num_heads, -1, -1)
        assert layout.ndim == 3, (
            f"blocksparse: layout has shape {list(layout.shape)}, expected [heads, rows, columns].  Fix: give it 3 "
            "dimensions."
        )
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.block_size = block_size
        self.num_heads = num_heads
        self.causal = causal
        self.register_buffer("layout", layout, persistent=False)
        self._mask = BlockSparseMask(layout != 0, block_size)
        self.requires_head_dimension = True
        self.requires_separate_masks = True
        self.supports_key_padding_mask = True

    def _check(self, q: torch.Tensor, k: torch.Tensor) -> None:
        _, rows, columns = self.layout.shape
        for name, seqlen, blocks in (("sequence", q.shape[-2], rows), ("key", k.shape[-2], columns)):
            assert -(-seqlen // self.block_size) == blocks, (
                f"BlockSparseAttention: {name} length is {seqlen}, the layout covers {blocks * self.block_size}: "
                f"inconsistent.  Fix: give ceil({name} length / {self.block_size}) blocks, or pad the sequence."
            )

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float = 1.0,
        att_mask: Mask | None = None,
        key_padding_mask: torch.Tensor | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        self._check(q, k)
        mask, causal = unwrapped(att_mask, q.shape[-2], k.shape[-2])
        if self._mask._key_offsets.device != q.device:
            self._mask = self._mask.to(q.device)
        out = torch.ops.xformers.block_sparse_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            *self._mask._lists(),
            *self._mask.block_size,
            mask,
            key_padding_mask,
            self.causal or causal,
            scale * q.shape[-1] ** -0.5,
            self.attn_drop.p if self.training else 0.0,
        )
        return out.transpose(1, 2)


__all__ = ["BlockSparseAttention", "BlockSparseAttentionConfig"]
