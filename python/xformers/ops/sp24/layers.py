"""Layers of 2:4 sparse weights, or activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .constants import BACKEND_CUTLASS, GRADIENT_DENSE
from .functions import check_names

_Tensor = torch.Tensor


class Linear24(nn.Linear):
    """`nn.Linear`, with its state dict, of which the weight is 2:4 sparse: sparsified anew in every forward.

    algo and backend as in `sparsify24`; gradient: "24dense" (that of dropped weights is zero), or "ste" (they go on
    learning). x [..., in_features]. After `freeze()` only the packed weight is left, 9/16 of the dense one's memory,
    for inference.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        algo: str = "",
        gradient: str = GRADIENT_DENSE,
        backend: str = BACKEND_CUTLASS,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        check_names("Linear24", gradient, backend)
        self.algo, self.gradient, self.backend = algo, gradient, backend

    def forward(self, x: _Tensor) -> _Tensor:
        if self.weight is not None:
            return torch.ops.xformers.sparse24_linear(x, self.weight, self.bias, self.algo, self.gradient, self.backend)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.ops.xformers.sparse24_product(
            self.packed,
            self.meta,
            flat.t(),
            self.out_features,
            self.in_features,
            self.bias,
            True,
            True,
            self.backend,
        )
        return out.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def freeze(self) -> "Linear24":
        """Keeps the packed weight alone (buffers `packed` and `meta`), for inference. Returns itself."""
        if self.weight is not None:
            packed, meta = torch.ops.xformers.sparse24_sparsify(self.weight, self.algo, self.backend)
            self.register_buffer("packed", packed)
            self.register_buffer("meta", meta)
            self.register_parameter("weight", None)
            if self.bias is not None:
                self.bias.requires_grad_(False)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, algo={self.algo!r}, gradient={self.gradient!r}, backend={self.backend!r}"


class MLP24(nn.Module):
    """fc2(activation(fc1(x))) with 2:4 sparse weights, or with dense ones and sparse activations.

    sparsity: "weights" (both layers are `Linear24`) or "activations" (what fc2 takes is sparsified; dropped places
    have no gradient). activation: "relu", "squared_relu", "gelu" (tanh), "gelu_exact". x [..., in_features].
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = True,
        activation: str = "gelu",
        sparsity: str = "weights",
        algo: str = "",
        gradient: str = GRADIENT_DENSE,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if sparsity not in ("weights", "activations"):
            raise ValueError(f'MLP24: sparsity is "{sparsity}", expected "weights" or "activations".')
        if activation not in _FUNCTIONS:
            raise ValueError(f'MLP24: activation is "{activation}", expected one of {", ".join(_FUNCTIONS)}.')
        self.activation, self.sparsity, self.algo = activation, sparsity, algo
        out = in_features if out_features is None else out_features
        self.fc1: nn.Linear
        self.fc2: nn.Linear
        if sparsity == "weights":
            self.fc1 = Linear24(in_features, hidden_features, bias, device, dtype, algo, gradient)
            self.fc2 = Linear24(hidden_features, out, bias, device, dtype, algo, gradient)
        else:
            self.fc1 = nn.Linear(in_features, hidden_features, bias, device, dtype)
            self.fc2 = nn.Linear(hidden_features, out, bias, device, dtype)

    def forward(self, x: _Tensor) -> _Tensor:
        hidden = self.fc1(x)
        if self.sparsity == "weights":
            out: _Tensor = self.fc2(_FUNCTIONS[self.activation](hidden))
            return out
        return torch.ops.xformers.sparse24_activated_linear(
            hidden, self.fc2.weight, self.fc2.bias, self.activation, self.algo
        )


_FUNCTIONS: dict[str, Callable[[_Tensor], _Tensor]] = {
    "relu": torch.relu,
    "squared_relu": lambda x: torch.relu(x).square(),
    "gelu": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_exact": nn.functional.gelu,
}
