"""Loads libxformers, which registers the operators as torch.ops.xformers.*"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from .version import __version__

# The folder that holds the libraries: the package's own, or, of an editable install, the one where they were built to.
_PACKAGE = next(
    (folder for folder in map(Path, sys.modules[__package__].__path__) if (folder / "libxformers.so").exists()),
    Path(__file__).parent,
)
_LIBRARY = _PACKAGE / "libxformers.so"
_registered = False


def _build_info() -> dict[str, Any]:
    """What the libraries were built with."""
    try:
        info: dict[str, Any] = json.loads((_PACKAGE / "_build_info.json").read_text())
        return info
    except (OSError, ValueError) as error:
        from ._install_help import rebuild

        raise ImportError(
            f"xformers {__version__} in {_PACKAGE} has no libraries ({error}): this is the source tree or a broken "
            f"install.  Fix: {rebuild(_PACKAGE)}"
        ) from error


def _major_minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _register_extensions() -> None:
    """Loads the library once. Anything that is wrong is an ImportError that says what to do."""
    global _registered
    if _registered:
        return
    info = _build_info()
    built_for, present = _major_minor(info["torch_version"]), _major_minor(torch.__version__)
    runs_under = info["torch_runs_under"]  # a load that fails is no version check: it may also crash later
    if present not in runs_under:
        from ._install_help import rebuild, take_torch

        raise ImportError(
            f"xformers {__version__} was built for torch {built_for} and runs under torch {' and '.join(runs_under)}; "
            f"this is torch {torch.__version__} in {Path(torch.__file__).parent}.  Fix: {take_torch(built_for)}; or "
            f"build xformers for this torch, {rebuild(_PACKAGE)}"
        )
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        from ._install_help import rebuild

        raise ImportError(
            f"xformers {__version__} could not load {_LIBRARY} under torch {torch.__version__} ({error}).  "
            f"Fix: build it for this torch, {rebuild(_PACKAGE)}"
        ) from error
    _registered = True
