"""Projections and heads around an attention."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from xformers._deprecation import warn_deprecated
from xformers.utils import SHARED_OPTIONS, build_from_registry, options_of, warn_unknown_options

from .attention import ATTENTION_REGISTRY, Attention
from .attention._masks import unwrapped
from .attention.attention_mask import AttentionMask
from .attention.base import AttentionConfig
from .attention.utils import maybe_merge_masks
from .input_projection import InputProjection, InputProjectionConfig
from .positional_embedding import RotaryEmbedding

_logger = logging.getLogger("xformers")


@dataclass
class MultiHeadDispatchConfig:
    """Options of MultiHeadDispatch, also as items: `config["dim_model"]`."""

    dim_model: int
    num_heads: int
    attention: Any  # an Attention, a config of one, or a dict
    bias: tuple[bool, bool, bool, bool] | bool | None = None
    residual_dropout: float | None = None
    dim_key: int | None = None
    dim_value: int | None = None
    in_proj_container: InputProjection | None = None
    use_separate_proj_weight: bool | None = None
    use_rotary_embeddings: bool | None = None
    out_proj: nn.Module | None = None

    def __getitem__(self, item: str) -> Any:
        return getattr(self, item)


class MultiHeadDispatch(nn.Module):
    """Projects queries, keys and values, splits them into heads, runs `attention`, merges the heads and projects.

    Arguments:
        dim_model, num_heads: the first a multiple of the second (AssertionError).
        attention: an `Attention`. Those of this library read heads where they are; others get them folded into the
            batch.
        bias: of the four projections (queries, keys, values, output); one bool stands for all, with a warning.
        residual_dropout: of the result.
        use_separate_proj_weight: False shares one weight among queries, keys and values.
        dim_key, dim_value: what is projected to, dim_model by default. Another dim_value needs an out_proj.
        in_proj_container, out_proj: modules in place of the projections.
        use_rotary_embeddings: turns queries and keys of each head by their positions (RotaryEmbedding).

    An attention that handles heads itself (`requires_skip_multi_head`) is called alone: no projection, no dropout.
    """

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        attention: Attention,
        bias: tuple[bool, bool, bool, bool] | bool = (True, True, True, True),
        residual_dropout: float = 0.0,
        use_separate_proj_weight: bool = True,
        dim_key: int | None = None,
        dim_value: int | None = None,
        in_proj_container: InputProjection | None = None,
        use_rotary_embeddings: bool | None = False,
        out_proj: nn.Module | None = None,
        *_: object,
        **__: object,
    ):
        super().__init__()
        warn_deprecated(type(self).__name__)
        if isinstance(bias, bool):
            _logger.warning("MultiHeadDispatch: one bias flag is used for all four projections (q, k, v and output)")
            bias = (bias, bias, bias, bias)
        dim_key, dim_value = dim_key or dim_model, dim_value or dim_model
        for name, size in (("dim_model", dim_model), ("dim_key", dim_key), ("dim_value", dim_value)):
            assert num_heads > 0 and size % num_heads == 0, (
                f"MultiHeadDispatch: {name} is {size}, expected a multiple of num_heads = {num_heads}.  Fix: choose "
                f"another {name} or number of heads."
            )
        self.num_heads = num_heads
        self.dim_model = dim_model
        self.dim_key_head = dim_key // num_heads
        self.dim_value_head = dim_value // num_heads
        self.attention = attention
        self.resid_drop = nn.Dropout(residual_dropout, inplace=False)
        skips = attention.requires_skip_multi_head
        self.in_proj_container: InputProjection | None = None
        if in_proj_container is not None:
            self.in_proj_container = in_proj_container
        elif attention.requires_input_projection and not skips:
            self.in_proj_container = InputProjection(
                InputProjectionConfig(dim_model, dim_key, bias[0]),
                InputProjectionConfig(dim_model, dim_key, bias[1]),
                InputProjectionConfig(dim_model, dim_value, bias[2]),
                use_separate_proj_weight=use_separate_proj_weight,
            )
        self.rotary_embeddings = RotaryEmbedding(self.dim_key_head) if use_rotary_embeddings and not skips else None
        self.proj: nn.Module | None = out_proj
        if out_proj is None and not skips:
            assert dim_value == dim_model, (
                f"MultiHeadDispatch: dim_value is {dim_value}, expected dim_model = {dim_model}.  Fix: pass an "
                f"out_proj from {dim_value} to {dim_model} features."
            )
            self.proj = nn.Linear(dim_model, dim_model, bias=bias[3])
            if bias[3]:
                nn.init.zeros_(self.proj.bias)

    @classmethod
    def from_config(cls, config: MultiHeadDispatchConfig) -> MultiHeadDispatch:
        """With the config's fields; those that are None take the constructor's default."""
        return cls(**options_of(config))

    def _check(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, att_mask: Any, key_padding_mask: Any
    ) -> None:
        where = "MultiHeadDispatch"
        for name, x in (("query", query), ("key", key), ("value", value)):
            assert x.ndim == 3, (
                f"{where}: {name} has shape {list(x.shape)}, expected [batch, seqlen, dim].  Fix: give it 3 dimensions."
            )
        largest = max(query.shape[0], key.shape[0], value.shape[0])
        for name, x in (("query", query), ("key", key), ("value", value)):
            assert x.shape[0] in (1, largest), (
                f"{where}: {name} has batch {x.shape[0]}, expected {largest} or 1.  Fix: queries, keys and values are "
                "those of the same batch."
            )
        assert key.shape[1] == value.shape[1], (
            f"{where}: key and value have lengths {key.shape[1]} and {value.shape[1]}, expected the same.  Fix: every "
            "key has one value."
        )
        attention = self.attention
        causal = getattr(attention, "causal", False)
        assert query.shape[1] == key.shape[1] or not (attention.requires_same_k_q_dimensions or causal), (
            f"{where}: query and key have lengths {query.shape[1]} and {key.shape[1]}, expected the same, which "
            f"{type(attention).__name__}{' with causal=True' if causal else ''} requires.  Fix: use another attention "
            "for keys of another length."
        )
        assert att_mask is None or attention.supports_attention_mask, (
            f"{where}: att_mask is given, expected None beside {type(attention).__name__}, which takes none.  Fix: "
            "leave it out."
        )
        takes_padding = attention.supports_key_padding_mask or attention.supports_attention_mask
        assert key_padding_mask is None or takes_padding, (
            f"{where}: key_padding_mask is given, expected None beside {type(attention).__name__}, which takes none.  "
            "Fix: leave it out."
        )
        if self.in_proj_container is not None and isinstance(self.in_proj_container, InputProjection):
            for name, x, letter in (("query", query, "q"), ("key", key, "k"), ("value", value, "v")):
                expected = getattr(self.in_proj_container, f"{letter}_proj").in_features
                assert x.shape[2] == expected, (
                    f"{where}: {name} has {x.shape[2]} features, expected {expected}.  Fix: build the module for them."
                )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        att_mask: AttentionMask | torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[batch, seqlen, dim_model]`. A missing key is the query, a missing value the key; batches of 1 are expanded.

        att_mask: as the attention takes it. key_padding_mask: `[batch, seqlen_k]`, True where a key is there.
        AssertionError for shapes that do not fit and for masks that the attention does not take.
        """
        key = query if key is None else key
        value = key if value is None else value
        self._check(query, key, value, att_mask, key_padding_mask)
        query, key, value = _same_batch(query, key, value)
        attention = self.attention
        if attention.requires_skip_multi_head:
            masks = {"att_mask": att_mask, "key_padding_mask": key_padding_mask}
            return attention(query, key, value, **{name: mask for name, mask in masks.items() if mask is not None})
        if attention.requires_input_projection:
            assert self.in_proj_container is not None, (
                "MultiHeadDispatch: the attention requires projections, and there are none.  Fix: set the flag before "
                "the module is built, or pass an in_proj_container."
            )
            query, key, value = self.in_proj_container(query=query, key=key, value=value)
        q, k, v = (
            torch.unflatten(x, -1, (self.num_heads, -1)) for x in (query, key, value)
        )  # [batch, seqlen, heads, head_dim]
        if self.rotary_embeddings is not None:
            q, k = (x.transpose(1, 2) for x in self.rotary_embeddings(q.transpose(1, 2), k.transpose(1, 2)))
        if "_takes_heads" in vars(type(attention)):
            out = self._with_heads(q, k, v, att_mask, key_padding_mask)
        else:
            out = self._folded(q, k, v, att_mask, key_padding_mask)
        assert self.proj is not None
        return self.resid_drop(self.proj(out))

    def _with_heads(self, q: Any, k: Any, v: Any, att_mask: Any, key_padding_mask: Any) -> torch.Tensor:
        masks = {"att_mask": att_mask, "key_padding_mask": key_padding_mask}
        out = self.attention(q, k, v, **{name: mask for name, mask in masks.items() if mask is not None})
        return out.flatten(2)

    def _folded(self, q: Any, k: Any, v: Any, att_mask: Any, key_padding_mask: Any) -> torch.Tensor:
        """As the contract of Attention says."""
        attention = self.attention
        batch, seqlen_q, heads, _ = q.shape
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if not attention.requires_head_dimension:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        masks: dict[str, Any] = {}
        if attention.requires_separate_masks:
            masks = {"att_mask": att_mask, "key_padding_mask": key_padding_mask}
        elif key_padding_mask is not None:
            mask = unwrapped(att_mask, -1, -1)[0]
            masks["att_mask"] = maybe_merge_masks(mask, key_padding_mask, batch, k.shape[-2], heads, seqlen_q)
        else:
            masks["att_mask"] = att_mask
        out = attention(q, k, v, **{name: mask for name, mask in masks.items() if mask is not None})
        if out.ndim == 3:
            out = torch.unflatten(out, 0, (batch, heads))
        return out.transpose(1, 2).flatten(2)


def _same_batch(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Those of batch 1 expanded to the largest; one tensor stays one."""
    largest = max(x.shape[0] for x in tensors)
    if all(x.shape[0] == largest for x in tensors):
        return tensors
    return tuple(x if x.shape[0] == largest else x.expand(largest, -1, -1) for x in tensors)


def build_multi_head_attention(config: Mapping[str, Any] | MultiHeadDispatchConfig) -> MultiHeadDispatch:
    """A MultiHeadDispatch with the attention that `config["attention"]` names: a dict, a config dataclass, or an
    Attention, of which every call takes a deep copy.

    The attention's config is completed by num_heads, dim_model and dim_features (= dim_model // num_heads). Nothing of
    the caller's is changed. KeyError for an unknown attention; unknown options are warned about, once."""
    known = {field.name for field in fields(MultiHeadDispatchConfig)}
    if isinstance(config, Mapping):
        given = dict(config)
    else:
        given = {name: getattr(config, name) for name in known}
    warn_unknown_options("build_multi_head_attention", given, known | SHARED_OPTIONS)
    attention = given["attention"]
    if isinstance(attention, Attention):
        attention = copy.deepcopy(attention)
    else:
        options = dict(attention) if isinstance(attention, Mapping) else _as_options(attention)
        num_heads, dim_model = given["num_heads"], given["dim_model"]
        filled = {"num_heads": num_heads, "dim_model": dim_model, "dim_head": dim_model // num_heads}
        if options.get("name") != "favor":  # whose own default is larger
            filled["dim_features"] = dim_model // num_heads
        for name, value in filled.items():
            if options.get(name) is None:
                options[name] = value
        attention = build_from_registry(ATTENTION_REGISTRY, "attention", options)
    given["attention"] = attention
    options = {name: given[name] for name in known if given.get(name) is not None}
    return MultiHeadDispatch(**options)


def _as_options(config: AttentionConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name, None) for field in fields(config)}


__all__ = ["MultiHeadDispatch", "MultiHeadDispatchConfig", "build_multi_head_attention"]
