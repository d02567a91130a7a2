"""Memory-efficient building blocks for transformers: C++ kernels under the names of the Python package xformers."""

import functools
import logging

from . import _cpp_lib
from .version import __version__

_cpp_lib._register_extensions()
_has_cpp_library: bool = True
logger = logging.getLogger("xformers")
compute_once = functools.cache  # for functions without arguments

from . import ops  # noqa: E402  (the operators must be registered first)
from .checkpoint import (  # noqa: E402  (xformers.checkpoint: the function here, the module to import from)
    checkpoint,
    get_optimal_checkpoint_policy,
    list_operators,
    selective_checkpoint_wrapper,
)


def _is_triton_available() -> bool:
    """False: every kernel of this library is C++ or CUDA."""
    return False


__all__ = [
    "__version__",
    "checkpoint",
    "get_optimal_checkpoint_policy",
    "list_operators",
    "ops",
    "selective_checkpoint_wrapper",
]
