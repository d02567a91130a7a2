"""Attention of a few tokens to all, and of all to them."""

from dataclasses import dataclass

import torch
from torch import nn

from ._masks import Mask, unwrapped
from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class GlobalAttentionConfig(AttentionConfig):
    """Options of `GlobalAttention`, by name; what they mean is said there. None: its default."""

    attention_query_mask: torch.Tensor  # which tokens are global, bool [seqlen] or [seqlen, 1]
    causal: bool | None
    force_sparsity: bool | None


@register_attention("global", GlobalAttentionConfig)
class GlobalAttention(Attention):
    """Global tokens see all and are seen by all, as in the Longformer: Beltagy et al., arXiv:2004.05150.

    `attention_query_mask`, bool `[seqlen, 1]` with more than one token (AssertionError), says which. A shorter input is
    followed by tokens of zeros up to seqlen, which count as keys, and cut again; a longer one is a ValueError. Causal:
    nobody sees a later key. An attention mask holds beside the pattern; `MultiHeadDispatch` gives none.

    For g global tokens the cost is that of 2 g of the rows of full attention, and no mask is made; `force_sparsity`
    has no effect.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        attention_query_mask: torch.Tensor | None = None,
        causal: bool = False,
        force_sparsity: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        mask = attention_query_mask
        assert mask is not None and mask.dtype == torch.bool and mask.ndim in (1, 2) and mask.numel() == len(mask), (
            f"global: attention_query_mask is {_told(mask)}, expected a bool tensor [seqlen, 1].  Fix: give one flag "
            "per token."
        )
        assert len(mask) > 1, (
            f"global: attention_query_mask is {_told(mask)}, expected more than one token.  Fix: give one flag per "
            "token, the sequence first."
        )
        self.attn_drop = nn.Dropout(dropout, inplace=False)
        self.causal = causal
        self.force_sparsity = force_sparsity
        self.seq_len = len(mask)
        self.global_tokens = mask.flatten().nonzero().flatten()  # no buffer: memory that is emptied leaves it as it is
        self.requires_same_k_q_dimensions = True
        self.supports_attention_mask = False

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        att_mask: Mask | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        mask, causal = unwrapped(att_mask, q.shape[1], k.shape[1])
        p = self.attn_drop.p if self.training else 0.0
        if self.global_tokens.device != q.device:
            self.global_tokens = self.global_tokens.to(q.device)
        return torch.ops.xformers.global_attention(
            q, k, v, self.global_tokens, self.seq_len, self.causal or causal, mask, p
        )


def _told(mask: object) -> str:
    return f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, torch.Tensor) else str(mask)


__all__ = ["GlobalAttention", "GlobalAttentionConfig"]
