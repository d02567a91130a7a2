"""Paths around layers: residual additions and norms, before, after, or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import nn

from xformers.triton.layer_norm import FusedLayerNorm


class ResidualNormStyle(str, Enum):
    """Where the norm of a residual path is."""

    Pre = "pre"  # x + f(norm(x)): "On Layer Normalization in the Transformer Architecture" (arXiv:2002.04745)
    Post = "post"  # norm(x + f(x)): "Attention Is All You Need" (arXiv:1706.03762)
    DeepNorm = "deepnorm"  # norm(alpha x + f(x)): "DeepNet" (Wang et al., arXiv:2203.00555)


LayerNormStyle = ResidualNormStyle  # its name up to 0.0.10


class NormalizationType(str, Enum):
    """Norms by name."""

    LayerNorm = "layernorm"
    Skip = "skip"  # none


class Skip(nn.Module):
    """No norm; takes what norms take."""

    def __init__(self, *_: object, **__: object):
        super().__init__()

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return x


def _member(kind: type[Enum], value: Any, where: str) -> Any:
    try:
        return kind(value.value if isinstance(value, Enum) else value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in kind)
        raise ValueError(f"{where} is {value!r}, expected one of {names}.  Fix: choose one of them.") from None


def get_normalization_layer(normalization_type: NormalizationType | str) -> type[nn.Module]:
    """The class of a norm by name: nn.LayerNorm, or Skip. ValueError for another name."""
    kind = _member(NormalizationType, normalization_type, "normalization")
    return nn.LayerNorm if kind == NormalizationType.LayerNorm else Skip


def build_norm(d_norm: int, normalization: NormalizationType | str, use_triton: bool = True) -> nn.Module:
    """FusedLayerNorm (eps 1e-6) with `use_triton`, else nn.LayerNorm (eps 1e-5), or no norm."""
    layer = get_normalization_layer(normalization)
    return FusedLayerNorm(d_norm) if layer is nn.LayerNorm and use_triton else layer(d_norm)


class RequiresWrappedInputs:
    """Marks a layer that takes `inputs=[...]`, a list, where others take tensors one by one."""


def _call(layer: nn.Module, inputs: Sequence[torch.Tensor], kwargs: dict[str, Any]) -> torch.Tensor:
    out: torch.Tensor = (
        layer(inputs=inputs, **kwargs) if isinstance(layer, RequiresWrappedInputs) else layer(*inputs, **kwargs)
    )
    return out


def _call_is_forward(module: nn.Module) -> bool:
    """Whether calling a module does no more than its forward: nobody has hooked anything to it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


class Residual(nn.Module, RequiresWrappedInputs):
    """`inputs[0] * scale + layer(inputs)`; scale None: 1."""

    def __init__(self, layer: nn.Module, scale: float | None = None):
        super().__init__()
        self.layer = layer
        self.scale = scale

    def forward(self, inputs: Sequence[torch.Tensor], **kwargs: Any) -> torch.Tensor:
        update = _call(self.layer, inputs, kwargs)
        return torch.ops.xformers.add_residual(update, inputs[0], 1.0 if self.scale is None else self.scale)


class _Normed(nn.Module, RequiresWrappedInputs):
    """A layer with a norm before or behind it."""

    def __init__(
        self,
        d_norm: int,
        sublayer: nn.Module,
        normalization: NormalizationType | str,
        use_triton: bool = True,
        *_: object,
        **__: object,
    ):
        super().__init__()
        self.norm = build_norm(d_norm, normalization, use_triton)
        self.sublayer = sublayer
        self.wrap_inputs = isinstance(sublayer, RequiresWrappedInputs)


class PreNorm(_Normed):
    """`sublayer(norm(inputs))`: every input normalised, once where all are one tensor."""

    def forward(self, inputs: Sequence[torch.Tensor], **kwargs: Any) -> torch.Tensor:
        assert len(inputs) > 0, "PreNorm: inputs is empty, expected a list of tensors.  Fix: pass [x]."
        if all(x is inputs[0] for x in inputs):
            normalised = [self.norm(inputs[0])] * len(inputs)
        else:
            normalised = [self.norm(x) for x in inputs]
        return _call(self.sublayer, normalised, kwargs)


class PostNorm(_Normed):
    """`norm(sublayer(inputs))`; on the CPU a Residual and a FusedLayerNorm are one pass."""

    def forward(self, inputs: Sequence[torch.Tensor], **kwargs: Any) -> torch.Tensor:
        path, norm = self.sublayer, self.norm
        if (
            type(path) is Residual
            and type(norm) is FusedLayerNorm
            and _call_is_forward(path)
            and _call_is_forward(norm)
        ):
            update, scale = _call(path.layer, inputs, kwargs), 1.0 if path.scale is None else path.scale
            of_sum = torch.ops.xformers.fused_layer_norm_of_sum
            normed: torch.Tensor = of_sum(update, inputs[0], norm.weight, norm.bias, norm.eps, scale)[0]
            return normed
        out: torch.Tensor = self.norm(_call(self.sublayer, inputs, kwargs))
        return out


class DeepNormCoefficients(NamedTuple):
    """DeepNorm's numbers: `norm(alpha x + f(x))`, and beta, the gain that weights begin with."""

    alpha: float
    beta: float


def get_deepnorm_coefficients(
    encoder_layers: int, decoder_layers: int
) -> tuple[DeepNormCoefficients | None, DeepNormCoefficients | None]:
    """DeepNorm's numbers for the encoder and the decoder of a model; None for one without layers.

    From "DeepNet" (Wang et al., arXiv:2203.00555, figure 2). The formulas are the library's (torch.ops.xformers)."""

    def of(alpha: float, beta: float) -> DeepNormCoefficients | None:
        return DeepNormCoefficients(alpha, beta) if alpha > 0 else None

    encoder_alpha, encoder_beta, decoder_alpha, decoder_beta = torch.ops.xformers.deepnorm_coefficients(
        encoder_layers, decoder_layers
    )
    return of(encoder_alpha, encoder_beta), of(decoder_alpha, decoder_beta)


__all__ = [
    "DeepNormCoefficients",
    "LayerNormStyle",
    "NormalizationType",
    "PostNorm",
    "PreNorm",
    "RequiresWrappedInputs",
    "Residual",
    "ResidualNormStyle",
    "Skip",
    "build_norm",
    "get_deepnorm_coefficients",
    "get_normalization_layer",
]
