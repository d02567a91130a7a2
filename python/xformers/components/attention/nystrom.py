"""Attention through the means of segments of the sequence."""

from dataclasses import dataclass

import torch
from torch import nn

from ._registry import register_attention
from .base import Attention, AttentionConfig


@dataclass
class NystromSelfAttentionConfig(AttentionConfig):
    """Options of `NystromAttention`, by name; what they mean is said there. None: its default."""

    num_heads: int
    num_landmarks: int | None
    landmark_pooling: nn.Module | None
    causal: bool | None
    pinverse_original_init: bool | None
    inv_iterations: int | None
    v_skip_connection: nn.Module | None
    conv_kernel_size: int | None
    use_razavi_pinverse: bool | None


@register_attention("nystrom", NystromSelfAttentionConfig)
class NystromAttention(Attention):
    """softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v, with landmarks q~ and k~: Xiong et al.,
    arXiv:2102.03902.

    Arguments:
        num_landmarks: segments of the sequence, whose means the landmarks are. No more tokens than that: exact
            attention.
        landmark_pooling: a module that takes `[N, seqlen, head_dim]` to `[N, num_landmarks, head_dim]`, for the means.
        causal: exact where attention is; else a landmark sees no key behind its own segment, an approximation.
        use_razavi_pinverse, inv_iterations, pinverse_original_init: the inverse by iteration, or by singular values.
        v_skip_connection, conv_kernel_size: a module on v `[batch, heads, seqlen, head_dim]`, or the (odd) size of a
            kernel per head along the sequence; its result is added.

    `key_padding_mask` `[batch, seqlen]` or `[batch * heads, 1, seqlen]`, bool or additive (AssertionError for another
    shape): padded tokens count in no mean. Dropout acts on the result. An attention mask has no effect.
    """

    _takes_heads = True

    def __init__(
        self,
        dropout: float = 0.0,
        num_heads: int = 1,
        num_landmarks: int = 64,
        landmark_pooling: nn.Module | None = None,
        causal: bool = False,
        use_razavi_pinverse: bool = True,
        pinverse_original_init: bool = False,
        inv_iterations: int = 6,
        v_skip_connection: nn.Module | None = None,
        conv_kernel_size: int | None = None,
        *_: object,
        **__: object,
    ):
        super().__init__()
        assert num_landmarks > 0, (
            f"nystrom: num_landmarks is {num_landmarks}, expected at least 1.  Fix: 64 is usual, more are closer to "
            "exact."
        )
        self.requires_separate_masks = True
        self.requires_same_k_q_dimensions = True
        self.supports_attention_mask = False
        self.supports_key_padding_mask = True
        self.num_landmarks = num_landmarks
        self.num_heads = num_heads
        self.use_razavi_pinverse = use_razavi_pinverse
        self.pinverse_original_init = pinverse_original_init
        self.inv_iterations = inv_iterations
        self.attn_drop = nn.Dropout(dropout)
        self.landmark_pooling = landmark_pooling
        self.causal = causal
        self.skip_connection = v_skip_connection
        if v_skip_connection is None and conv_kernel_size is not None:
            self.skip_connection = nn.Conv2d(
                num_heads,
                num_heads,
                kernel_size=(conv_kernel_size, 1),
                padding=(conv_kernel_size // 2, 0),
                groups=num_heads,
                bias=False,
            )
        self._own_skip = v_skip_connection is None and conv_kernel_size is not None

    def _pooled(self, x: torch.Tensor) -> torch.Tensor | None:
        if self.landmark_pooling is None:
            return None
        if x.ndim == 3:
            return self.landmark_pooling(x)
        batch, seqlen, heads, dim = x.shape
        pooled = self.landmark_pooling(x.transpose(1, 2).reshape(batch * heads, seqlen, dim))
        return pooled.view(batch, heads, -1, dim).transpose(1, 2)

    def _skipped(self, v: torch.Tensor) -> torch.Tensor | None:
        if self.skip_connection is None or self._own_skip:
            return None
        if v.ndim == 4:
            return self.skip_connection(v.transpose(1, 2)).transpose(1, 2)
        return self.skip_connection(v.view(-1, self.num_heads, *v.shape[1:])).reshape(v.shape)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        if key_padding_mask is not None:
            folded = q.shape[0] * (q.shape[2] if q.ndim == 4 else 1)
            shape, seqlen = key_padding_mask.shape, q.shape[1]
            fits = (len(shape) == 2 and shape[1] == seqlen and folded % shape[0] == 0) or shape == (folded, 1, seqlen)
            assert fits, (
                f"nystrom: key_padding_mask has shape {list(shape)}, expected [batch, {seqlen}] or [{folded}, 1, "
                f"{seqlen}].  Fix: one row per sequence, or per sequence and head."
            )
        skipped = self._skipped(v)
        p = self.attn_drop.p if self.training else 0.0
        needs_landmarks = q.shape[1] > self.num_landmarks
        out = torch.ops.xformers.nystrom_attention(
            q,
            k,
            v,
            key_padding_mask,
            self.num_landmarks,
            self.causal,
            self.use_razavi_pinverse,
            self.pinverse_original_init,
            self.inv_iterations,
            self._pooled(q) if needs_landmarks else None,
            self._pooled(k) if needs_landmarks else None,
            self.skip_connection.weight if self._own_skip else None,  # type: ignore[union-attr]
            p if skipped is None else 0.0,
        )
        return out if skipped is None else self.attn_drop(out + skipped)


__all__ = ["NystromAttention", "NystromSelfAttentionConfig"]
