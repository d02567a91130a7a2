"""Loads libxformers, which registers the operators as torch.ops.xformers.*"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from . import _torch_library
from .version import __version__

# The folder that holds the kernels: the package's own, or, of an editable install, the one where they were built to.
_PACKAGE = next(
    (folder for folder in map(Path, sys.modules[__package__].__path__) if (folder / "_build_info.json").exists()),
    Path(__file__).parent,
)
_KERNELS = ("libxformers_attention_kernels.so", "libxformers_kernels.so")
_loaded: _torch_library.TorchLibrary | None = None


def _build_info() -> dict[str, Any]:
    """What the libraries were built with; torch's part is that of the loaded library."""
    try:
        info: dict[str, Any] = json.loads((_PACKAGE / "_build_info.json").read_text())
    except (OSError, ValueError) as error:
        from ._install_help import rebuild

        raise ImportError(
            f"xformers {__version__} in {_PACKAGE} has no libraries ({error}): this is the source tree or a broken "
            f"install.  Fix: {rebuild(_PACKAGE)}"
        ) from error
    return {**info, **_loaded.record} if _loaded else info


def _no_library_for_this_torch() -> ImportError:
    from ._install_help import build_command, take_torch

    series = list(_torch_library.in_package(_PACKAGE))
    take = f"; or {take_torch(series[-1])}" if series else ""
    return ImportError(
        f"xformers {__version__} has operators for torch {', '.join(series) or 'of no series'}; this is torch "
        f"{torch.__version__} in {Path(torch.__file__).parent}.  Fix: {build_command()} (compiles them for this torch, "
        f"once){take}"
    )


def load(folder: Path) -> None:
    """Loads the kernels, then the operators of a folder over them. OSError where they don't fit this torch."""
    for name in _KERNELS:  # by path: the operators name them, and lie in a folder of their own
        ctypes.CDLL(str(_PACKAGE / name))
    torch.ops.load_library(folder / "libxformers.so")


def _register_extensions() -> None:
    """Loads the library once. Anything that is wrong is an ImportError that says what to do."""
    global _loaded
    if _loaded:
        return
    found = _torch_library.find(_PACKAGE, _build_info())  # a load that fails is no version check: it may crash later
    if not found:
        raise _no_library_for_this_torch()
    try:
        load(found.folder)
    except OSError as error:
        from ._install_help import build_command, rebuild

        details = os.environ.get("XFORMERS_MORE_DETAILS") == "1"
        what = str(error) if details else f"{str(error)[:200]}; XFORMERS_MORE_DETAILS=1 shows all"
        again = f"{build_command()} --force" if (_PACKAGE / "_sources").exists() else rebuild(_PACKAGE)
        raise ImportError(
            f"xformers {__version__} could not load {found.folder / 'libxformers.so'} ({found.source}: {found.why}) "
            f"under torch {torch.__version__} ({what}).  Fix: build it for this torch, {again}"
        ) from (error if details else None)
    _loaded = found
