"""Memory-efficient building blocks for transformers: C++ kernels under the names of the Python package xformers."""

import functools
import logging
import sys

from . import _cpp_lib
from .version import __version__

logger = logging.getLogger("xformers")
compute_once = functools.cache  # for functions without arguments

# `python -m xformers.build` imports this package first, and is for the case that it can't be loaded yet.
_building = sys.argv[:1] == ["-m"] and ("-m", "xformers.build") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
_has_cpp_library: bool = not _building
if not _building:
    _cpp_lib._register_extensions()

    from . import ops  # the operators must be registered first
    from .checkpoint import (  # xformers.checkpoint: the function here, the module to import from
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
