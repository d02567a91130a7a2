"""The projections of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class InputProjectionConfig:
    """One projection: `[..., in_features]` to `[..., out_features]`."""

    in_features: int
    out_features: int
    bias: bool


class InputProjection(nn.Module):
    """Projects queries, keys and values, each `[batch, seqlen, in_features]`.

    Arguments:
        query_proj_params, key_proj_params, value_proj_params: None for keys or values takes the module of the queries.
        use_separate_proj_weight: False shares the weight (then all shapes are those of the queries), not the biases.

    Weights of one shape lie side by side in memory: where query, key and value are one tensor, one product gives all
    three, of which they are views. State dicts have `{q,k,v}_proj.{weight,bias}`; the packed names `in_proj_weight`,
    `in_proj_bias` and `{q,k,v}_proj_weight` of releases before 0.0.12 load too.
    """

    def __init__(
        self,
        query_proj_params: InputProjectionConfig,
        key_proj_params: InputProjectionConfig | None = None,
        value_proj_params: InputProjectionConfig | None = None,
        use_separate_proj_weight: bool = True,
    ):
        super().__init__()
        self.out_features = query_proj_params.out_features

        def linear(config: InputProjectionConfig) -> nn.Linear:
            return nn.Linear(config.in_features, config.out_features, bias=config.bias)

        self.q_proj = linear(query_proj_params)
        self.k_proj = self.q_proj if key_proj_params is None else linear(key_proj_params)
        self.v_proj = self.q_proj if value_proj_params is None else linear(value_proj_params)
        if not use_separate_proj_weight:
            for name, projection in (("key", self.k_proj), ("value", self.v_proj)):
                assert projection.weight.shape == self.q_proj.weight.shape, (
                    f"InputProjection: the {name} projection is {list(projection.weight.shape)}, expected "
                    f"{list(self.q_proj.weight.shape)}, the shape of the weight that it shares.  Fix: "
                    "use_separate_proj_weight=True."
                )
                projection.weight = self.q_proj.weight
        self._pack()

    def _three(self, name: str) -> list[torch.Tensor]:
        return [getattr(projection, name) for projection in (self.q_proj, self.k_proj, self.v_proj)]

    def _packable(self) -> bool:
        weights, biases = self._three("weight"), self._three("bias")
        first = weights[0]
        alike = all(w.shape == first.shape and w.dtype == first.dtype and w.device == first.device for w in weights)
        return alike and len({id(w) for w in weights}) == 3 and len({b is None for b in biases}) == 1

    def _pack(self) -> None:
        """Puts the weights, and the biases, side by side; nothing else about them changes."""
        if not self._packable():
            return
        for tensors in (self._three("weight"), self._three("bias")):
            if tensors[0] is not None and type(tensors[0].data) is torch.Tensor:
                with torch.no_grad():
                    for tensor, part in zip(tensors, torch.stack([t.detach() for t in tensors]).unbind(), strict=True):
                        tensor.data = part

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._pack()
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._pack()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        packed = {kind: state_dict.pop(prefix + f"in_proj_{kind}", None) for kind in ("weight", "bias")}
        for i, letter in enumerate("qkv"):
            for kind, tensor in packed.items():
                if tensor is not None:
                    rows = tensor.shape[0] // 3
                    state_dict[f"{prefix}{letter}_proj.{kind}"] = tensor[i * rows : (i + 1) * rows]
            alone = state_dict.pop(f"{prefix}{letter}_proj_weight", None)
            if alone is not None:
                state_dict[f"{prefix}{letter}_proj.weight"] = alone
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor | None = None, value: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(q, k, v)`, `[batch, seqlen, out_features]` each. A missing key is the query, a missing value the key."""
        key = query if key is None else key
        value = key if value is None else value
        if query is key and key is value and self._packable():
            biases = self._three("bias")
            q, k, v = torch.ops.xformers.input_projection(
                query, self._three("weight"), [] if biases[0] is None else biases
            )
            return q, k, v
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)


__all__ = ["InputProjection", "InputProjectionConfig"]
