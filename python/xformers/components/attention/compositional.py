"""Attention whose search and retrieval are apart."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xformers.components.input_projection import InputProjection, InputProjectionConfig

from ._masks import unwrapped
from ._registry import register_attention
from .attention_mask import AttentionMask
from .base import Attention, AttentionConfig


@dataclass
class CompositionalAttentionConfig(AttentionConfig):
    """Options of `CompositionalAttention`, by name; what they mean is said there. None: its default."""

    dim_model: int
    num_heads: int
    dim_attn: int | None
    num_rules: int | None
    dim_key: int | None
    dim_value: int | None
    dim_selection: int | None
    qk_rule: bool | None
    nonlinear: bool | None
    q_compose: bool | None
    bias: bool | None
    causal: bool | None
    in_proj_container: InputProjection | None
    use_separate_proj_weight: bool | None


@register_attention("compositional", CompositionalAttentionConfig)
class CompositionalAttention(Attention):
    """Every head's weights fetch the values of all rules; each token and head chooses among them: Mittal et al.,
    arXiv:2110.09419.

    Arguments:
        dim_attn: of the values of all rules together, dim_model by default; a multiple of num_rules (AssertionError).
        num_rules: num_heads by default.
        dim_key, dim_value: what queries and keys, and values, are projected to: dim_model, and dim_attn.
        dim_selection: of the queries that choose, dim_model // num_heads by default.
        qk_rule: scores are products of selection queries and projected retrievals, else those of a linear network, or
            with `nonlinear` one with a hidden layer of dim_selection.
        q_compose: selection queries from the projected queries of each head instead of the raw ones.
        use_separate_proj_weight: weights of their own for queries, keys and values.

    `forward(q, k, v, att_mask)` takes and returns `[batch, seqlen, dim_model]`; masks as ScaledDotProduct.
    """

    def __init__(
        self,
        dim_model: int,
        num_heads: int,
        dim_attn: int | None = None,
        num_rules: int | None = None,
        dim_selection: int | None = None,
        dim_key: int | None = None,
        dim_value: int | None = None,
        dropout: float = 0.0,
        qk_rule: bool = False,
        nonlinear: bool = False,
        q_compose: bool = False,
        in_proj_container: InputProjection | None = None,
        use_separate_proj_weight: bool | None = False,
        bias: bool = True,
        causal: bool = False,
        *_: object,
        **__: object,
    ):
        super().__init__()
        num_rules = num_rules or num_heads
        dim_attn = dim_attn or dim_model
        dim_selection = dim_selection or dim_model // num_heads
        dim_key = dim_key or dim_model
        dim_value = dim_value or dim_attn
        for name, size, parts in (
            ("dim_attn", dim_attn, num_rules),
            ("dim_value", dim_value, num_rules),
            ("dim_key", dim_key, num_heads),
        ):
            assert size % parts == 0, (
                f"compositional: {name} is {size}, expected a multiple of {parts}.  Fix: choose another {name}, or "
                "another number of heads or rules."
            )
        self.requires_skip_multi_head = True
        self.requires_input_projection = False
        self.dim_model = dim_model
        self.num_heads = num_heads
        self.num_rules = num_rules
        self.dim_selection = dim_selection
        self.qk_rule = qk_rule
        self.nonlinear = nonlinear
        self.q_compose = q_compose
        self.causal = causal
        self.scale = (dim_model / num_heads) ** -0.5
        self.attn_drop = nn.Dropout(dropout)
        if in_proj_container is None:
            separate = bool(use_separate_proj_weight) or dim_value != dim_key
            config = InputProjectionConfig(dim_model, dim_key, bias)
            in_proj_container = InputProjection(
                config,
                InputProjectionConfig(dim_model, dim_key, bias),
                InputProjectionConfig(dim_model, dim_value, bias),
                use_separate_proj_weight=separate,
            )
        self.in_proj_container = in_proj_container
        self.out_proj = nn.Linear(num_heads * (dim_value // num_rules), dim_model, bias=bias)
        self.value_q = (
            nn.Linear(dim_key // num_heads, dim_selection, bias=bias)
            if q_compose
            else nn.Linear(dim_model, dim_selection * num_heads, bias=bias)
        )
        dim_rule = dim_value // num_rules
        if qk_rule:
            self.value_k = nn.Linear(dim_rule, dim_selection, bias=bias)
        elif nonlinear:
            self.score_network: nn.Module = nn.Sequential(
                nn.Linear(dim_rule + dim_selection, dim_selection, bias=bias),
                nn.ReLU(),
                nn.Linear(dim_selection, 1, bias=bias),
            )
        else:
            self.score_network = nn.Linear(dim_rule + dim_selection, 1, bias=bias)

    def _score(self) -> list[torch.Tensor | None]:
        """weight, bias, and those of a second layer"""
        if self.qk_rule:
            layers: list[Any] = [self.value_k]
        elif self.nonlinear:
            layers = [self.score_network[0], self.score_network[2]]  # type: ignore[index]
        else:
            layers = [self.score_network]
        tensors = [t for layer in layers for t in (layer.weight, layer.bias)]
        return tensors + [None] * (4 - len(tensors))

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        att_mask: AttentionMask | torch.Tensor | None = None,
        *_: object,
        **__: object,
    ) -> torch.Tensor:
        k = q if k is None else k
        v = k if v is None else v
        projected = self.in_proj_container(query=q, key=k, value=v)
        by_head = (self.num_heads, -1)
        queries, keys = (torch.unflatten(x, -1, by_head) for x in projected[:2])
        values = torch.unflatten(projected[2], -1, (self.num_rules, -1))
        selection = self.value_q(queries) if self.q_compose else torch.unflatten(self.value_q(q), -1, by_head)
        mask, causal = unwrapped(att_mask, q.shape[1], k.shape[1])
        out = torch.ops.xformers.compositional_attention(
            queries,
            keys,
            values,
            selection,
            *self._score(),
            qk_rule=self.qk_rule,
            att_mask=mask,
            causal=self.causal or causal,
            p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale,
        )
        return self.out_proj(out.flatten(2))


__all__ = ["CompositionalAttention", "CompositionalAttentionConfig"]
