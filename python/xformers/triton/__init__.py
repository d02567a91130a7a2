"""The fused layers, at the address where xFormers had them. Kernels are C++ and CUDA; there is no Triton in them."""

from .dropout import FusedDropoutBias, dropout
from .fused_linear_layer import FusedLinear
from .layer_norm import FusedLayerNorm, layer_norm
from .softmax import log_softmax, softmax

__all__ = [
    "FusedDropoutBias",
    "FusedLayerNorm",
    "FusedLinear",
    "dropout",
    "layer_norm",
    "log_softmax",
    "softmax",
]
