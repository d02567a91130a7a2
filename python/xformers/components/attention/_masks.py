"""Masks as the library's operators take them."""

import torch

from .attention_mask import AttentionMask


def unwrapped(
    mask: torch.Tensor | AttentionMask | None, seqlen_q: int, seqlen_k: int
) -> tuple[torch.Tensor | None, bool]:
    """(the mask as a tensor, whether it is j <= i instead)"""
    if not isinstance(mask, AttentionMask):
        return mask, False
    return (None, True) if mask._is_band(seqlen_q, seqlen_k) else (mask.values, False)


__all__ = ["unwrapped"]
