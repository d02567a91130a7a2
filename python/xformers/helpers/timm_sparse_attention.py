"""The attention of timm's vision transformers, with a mask."""

import torch
from torch import nn

from xformers.components.attention._masks import Mask, attend


class TimmSparseAttention(nn.Module):
    """Self-attention of tokens `[batch, seqlen, dim]`, with the parameters of timm's Attention (`qkv`, `proj`).

    Arguments:
        dim, num_heads: the first a multiple of the second (AssertionError).
        qkv_bias: of the projection of queries, keys and values.
        attn_drop, proj_drop: of dropping a weight, and an element of the result.
        attn_mask: bool (True attends), additive, an AttentionMask or a SparseCS, `[seqlen, seqlen]`; one given to a
            call takes its place.

    One product projects, queries, keys and values are views of its result, and no scores are stored.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_mask: Mask | None = None,
    ):
        super().__init__()
        assert dim % num_heads == 0, (
            f"TimmSparseAttention: dim is {dim}, expected a multiple of num_heads = {num_heads}.  Fix: choose another "
            "number of heads."
        )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.attn_mask = attn_mask

    def forward(self, x: torch.Tensor, attn_mask: Mask | None = None, is_causal: bool = False) -> torch.Tensor:
        """attn_mask and is_causal (token i sees j <= i) as today's timm passes them."""
        mask = self.attn_mask if attn_mask is None else attn_mask
        if mask is not None and mask.device != x.device:
            mask = mask.to(x.device)
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))
        q, k, v = torch.ops.xformers.unbind(qkv, 2)
        p = self.attn_drop.p if self.training else 0.0
        out = attend(q, k, v, mask, causal=is_causal, p=p)
        return self.proj_drop(self.proj(out.flatten(2)))


__all__ = ["TimmSparseAttention"]
