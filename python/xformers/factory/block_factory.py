"""Layers of encoders and decoders."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from xformers._deprecation import warn_deprecated
from xformers.components import (
    PostNorm,
    PreNorm,
    Residual,
    ResidualNormStyle,
    build_multi_head_attention,
    build_patch_embedding,
)
from xformers.components.feedforward import build_feedforward
from xformers.components.positional_embedding import build_positional_embedding
from xformers.components.residual import get_deepnorm_coefficients
from xformers.components.simplicial_embedding import SimplicialEmbedding

from .block_configs import BlockType, xFormerBlockConfig, xFormerDecoderConfig, xFormerEncoderConfig


def _wrapper(config: xFormerBlockConfig, alpha: float | None) -> Callable[[nn.Module], nn.Module]:
    """Puts the residual path and the norm of the config around a layer; in reversible stacks the norm alone."""
    args = (config.normalization, config.use_triton)
    dim, style = config.dim_model, config.residual_norm_style
    if style == ResidualNormStyle.Pre:
        if config.reversible:
            return lambda layer: PreNorm(dim, layer, *args)
        return lambda layer: Residual(PreNorm(dim, layer, *args))
    if config.reversible:
        return lambda layer: PostNorm(dim, layer, *args)
    scale = None
    if style == ResidualNormStyle.DeepNorm:
        if alpha is None:  # as if this config were the whole model
            layers = (config.num_layers, 0) if config.block_type == BlockType.Encoder else (0, config.num_layers)
            alone = next(c for c in get_deepnorm_coefficients(*layers) if c is not None)
            alpha = alone.alpha
        scale = alpha
    return lambda layer: PostNorm(dim, Residual(layer, scale), *args)


def _named(path: str, name: str, build: Callable[..., nn.Module], config: Any) -> Any:
    """build(config), whose errors say where in the config it is."""
    try:
        return build(config)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        where = f"{path}.{name}" if path else name
        text = error.args[0] if error.args else error
        raise type(error)(f"{where}: {text}") from error


def embeddings_of(config: xFormerBlockConfig, path: str) -> tuple[nn.Module | None, nn.Module | None]:
    """The position encoding, where this is a first layer that has one, and what projects it to the model's width."""
    pose = config.position_encoding_config
    if pose is None or not config.layer_position.is_first():
        return None, None
    encoding = _named(path, "position_encoding_config", build_positional_embedding, pose)
    dim = pose["dim_model"]
    return encoding, nn.Linear(dim, config.dim_model) if dim != config.dim_model else None


def patches_of(config: xFormerBlockConfig, path: str) -> nn.Module | None:
    patch = config.patch_embedding_config
    return None if patch is None else _named(path, "patch_embedding_config", build_patch_embedding, patch)


def simplices_of(config: xFormerBlockConfig) -> nn.Module | None:
    chunks = config.simplicial_embeddings
    return SimplicialEmbedding(**chunks) if chunks is not None and config.layer_position.is_last() else None


def masked(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """x `[batch, seqlen, dim]` times a mask `[batch, seqlen]` or `[seqlen]`, in which False and -inf count as 0."""
    if mask.dtype == torch.bool:
        mask = mask.to(x.dtype)
    elif mask.is_floating_point():
        mask = mask.masked_fill(mask == float("-inf"), 0).to(x.dtype)
    return x * mask.unsqueeze(-1)


class _Block(nn.Module, metaclass=ABCMeta):
    """What both kinds have. `alpha`: DeepNorm's, of the whole model; None: of this config alone."""

    def __init__(self, config: xFormerBlockConfig, alpha: float | None, path: str):
        super().__init__()
        warn_deprecated(type(self).__name__)
        self.residual_norm_style = config.residual_norm_style
        self.dim_model = config.dim_model
        self.patch_emb = patches_of(config, path)
        self.pose_encoding, self.embedding_projector = embeddings_of(config, path)
        self._wrap = _wrapper(config, alpha)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor: ...

    def _finish(self, config: xFormerBlockConfig, path: str) -> nn.Module:
        """The feed-forward layer in its wrapper; behind the last layer of a pre-norm stack there is one more norm."""
        feedforward = _named(path, "feedforward_config", build_feedforward, config.feedforward_config)
        wrapped = self._wrap(feedforward)
        del self._wrap
        self.simplicial_embedding = simplices_of(config)
        self.requires_squared_context_length = bool(feedforward.requires_squared_context)
        if config.residual_norm_style == ResidualNormStyle.Pre and config.layer_position.is_last():
            wrapped = PostNorm(config.dim_model, wrapped, config.normalization, config.use_triton)
        return wrapped

    def _attention(self, config: Any, path: str, name: str) -> nn.Module:
        attention: nn.Module = _named(path, name, build_multi_head_attention, config)
        return attention

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.patch_emb, self.pose_encoding, self.embedding_projector):
            x = x if layer is None else layer(x)
        return x


class xFormerEncoderBlock(_Block):
    """One encoder layer: patches and positions where it is a first one, attention, feed-forward.

    `forward(x, att_mask=None, input_mask=None)`: `[batch, seqlen, dim_model]`. input_mask `[batch, seqlen]` or
    `[seqlen]` multiplies keys and values, False and -inf as 0; queries stay.
    """

    def __init__(self, config: xFormerEncoderConfig, *, alpha: float | None = None, path: str = "", **_: Any):
        super().__init__(config, alpha, path)
        attention = self._attention(config.multi_head_config, path, "multi_head_config")
        mechanism: Any = attention.attention
        self.supports_attention_mask = mechanism.supports_attention_mask
        self.requires_same_k_q_dimensions = mechanism.requires_same_k_q_dimensions
        self.causal = getattr(mechanism, "causal", False)
        self.wrap_att = self._wrap(attention)
        self.wrap_ff = self._finish(config, path)
        self.requires_squared_context_length |= mechanism.requires_squared_context

    @classmethod
    def from_config(cls, config: xFormerEncoderConfig) -> xFormerEncoderBlock:
        """One layer of the config."""
        return cls(config)

    @staticmethod
    def get_reversible_layer(config: xFormerEncoderConfig, path: str = "") -> tuple[nn.Module, nn.Module]:
        """The pair (f, g) of a reversible stack: norm and attention, norm and feed-forward, without residuals."""
        wrap = _wrapper(config, None)
        attention = _named(path, "multi_head_config", build_multi_head_attention, config.multi_head_config)
        feedforward = _named(path, "feedforward_config", build_feedforward, config.feedforward_config)
        return wrap(attention), wrap(feedforward)

    def forward(
        self, x: torch.Tensor, att_mask: Any | None = None, input_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self._embed(x)
        inputs = [x, x, x] if input_mask is None else [x, *2 * [masked(x, input_mask)]]
        x = self.wrap_att(inputs=inputs, **({} if att_mask is None else {"att_mask": att_mask}))
        x = self.wrap_ff(inputs=[x])
        return x if self.simplicial_embedding is None else self.simplicial_embedding(x)


class xFormerDecoderBlock(_Block):
    """One decoder layer: positions where it is a first one, attention among the targets, attention to the memory,
    feed-forward.

    `forward(target, memory, encoder_att_mask=None, decoder_att_mask=None, input_mask=None)`: `[batch, seqlen of the
    target, dim_model]`. encoder_att_mask: of the attention to the memory; decoder_att_mask: among the targets.
    AssertionError for a target of another length than the memory's where an attention forbids it.
    """

    def __init__(self, config: xFormerDecoderConfig, *, alpha: float | None = None, path: str = "", **_: Any):
        super().__init__(config, alpha, path)
        own = self._attention(config.multi_head_config_masked, path, "multi_head_config_masked")
        cross = self._attention(config.multi_head_config_cross, path, "multi_head_config_cross")
        mechanisms: list[Any] = [own.attention, cross.attention]
        self.supports_attention_mask = all(m.supports_attention_mask for m in mechanisms)
        self.requires_same_k_q_dimensions = mechanisms[1].requires_same_k_q_dimensions
        self.causal_attention = getattr(mechanisms[0], "causal", False)
        self.wrap_att = self._wrap(own)
        self.wrap_cross = self._wrap(cross)
        self.wrap_ff = self._finish(config, path)
        self.requires_squared_context_length |= any(m.requires_squared_context for m in mechanisms)

    @classmethod
    def from_config(cls, config: xFormerDecoderConfig) -> xFormerDecoderBlock:
        """One layer of the config."""
        return cls(config)

    def forward(
        self,
        target: torch.Tensor,
        memory: torch.Tensor,
        encoder_att_mask: Any | None = None,
        decoder_att_mask: Any | None = None,
        input_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        target = self._embed(target)
        assert target.shape[1] == memory.shape[1] or not self.requires_same_k_q_dimensions, (
            f"xFormerDecoderBlock: the target has length {target.shape[1]}, expected {memory.shape[1]}, that of the "
            "memory, which this attention requires.  Fix: use another multi_head_config_cross."
        )
        inputs = [target] * 3 if input_mask is None else [target, *2 * [masked(target, input_mask)]]
        x = self.wrap_att(inputs=inputs, **({} if decoder_att_mask is None else {"att_mask": decoder_att_mask}))
        of_memory = {} if encoder_att_mask is None else {"att_mask": encoder_att_mask}
        x = self.wrap_cross(inputs=[x, memory, memory], **of_memory)
        x = self.wrap_ff(inputs=[x])
        return x if self.simplicial_embedding is None else self.simplicial_embedding(x)


__all__ = ["xFormerDecoderBlock", "xFormerEncoderBlock"]
