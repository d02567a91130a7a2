"""Masks of several kinds as one, and the pseudo-inverse of Nystrom attention."""

import torch


def reshape_key_padding_mask(key_padding_mask: torch.Tensor, batched_dim: int) -> torch.Tensor:
    """`[batch, seqlen]` for heads folded into the batch: `[batched_dim, 1, seqlen]`."""
    assert key_padding_mask.ndim == 2, (
        f"key_padding_mask has shape {list(key_padding_mask.shape)}, expected [batch, seqlen].  Fix: one row per "
        "sequence."
    )
    batch, seqlen = key_padding_mask.shape
    heads = batched_dim // batch
    return key_padding_mask[:, None, None].expand(batch, heads, 1, seqlen).reshape(batch * heads, 1, seqlen)


def bool_mask_to_additive(mask: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """0 where the mask is True, -inf elsewhere. AssertionError for anything but bool."""
    assert mask.dtype == torch.bool, f"mask is {mask.dtype}, expected bool.  Fix: it is added as it is."
    return torch.ops.xformers.additive_mask(mask, dtype)


def maybe_merge_masks(
    att_mask: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    batch_size: int,
    src_len: int,
    num_heads: int,
    tgt_len: int | None = None,
) -> torch.Tensor | None:
    """One mask `[batch * heads, tgt_len, src_len]` of an attention mask (bool or additive, any of its shapes) and
    padding `[batch, src_len]`, True where a key is there. None where there is neither, att_mask itself without
    padding."""
    if key_padding_mask is None:
        return att_mask
    assert key_padding_mask.shape == (batch_size, src_len), (
        f"key_padding_mask has shape {list(key_padding_mask.shape)}, expected {[batch_size, src_len]}.  Fix: one row "
        "per sequence, one column per key."
    )
    tgt_len = src_len if tgt_len is None else tgt_len
    padding = reshape_key_padding_mask(key_padding_mask, batch_size * num_heads)
    if padding.dtype != torch.bool:
        padding = padding != -torch.inf if padding.is_floating_point() else padding != 0
    if att_mask is None:
        return padding.expand(-1, tgt_len, -1)
    if att_mask.ndim == 2:
        att_mask = att_mask[None]
    if att_mask.shape[0] == batch_size and num_heads > 1:
        att_mask = att_mask.repeat_interleave(num_heads, dim=0)
    return att_mask & padding if att_mask.dtype == torch.bool else att_mask.masked_fill(~padding, -torch.inf)


def iterative_pinv(softmax_mat: torch.Tensor, n_iter: int = 6, pinverse_original_init: bool = False) -> torch.Tensor:
    """The pseudo-inverse of matrices `[..., n, n]` by products alone: V <- V (13 I - A V (15 I - A V (7 I - A V))) / 4
    from A^T over the largest column sum, of each matrix or (pinverse_original_init) of all. Razavi et al., 2014."""
    return torch.ops.xformers.iterative_pinv(softmax_mat, n_iter, pinverse_original_init)


__all__ = ["bool_mask_to_additive", "iterative_pinv", "maybe_merge_masks", "reshape_key_padding_mask"]
