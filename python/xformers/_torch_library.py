"""Which operator library goes with the torch that was imported: one of the user's cache, else one of the package.

A package has a folder per torch series, torch210/, torch211/, ..., over one set of kernels; `python -m xformers.build`
fills the cache for a torch that none of them is for.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RECORD = "_torch_library.json"


@dataclass(frozen=True)
class TorchLibrary:
    """A folder that holds libxformers.so, what it was built with, and why it was taken."""

    folder: Path
    record: dict[str, Any]
    source: str
    why: str


def series(version: str) -> str:
    """ "2.11.0+cu130" -> "2.11" """
    return ".".join(version.split(".")[:2])


def cache_folder(build: dict[str, Any]) -> Path:
    """Of the torch that was imported, for kernels with this record. Two builds of one version are two torches."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kernels = f"{build['version']}-{build['sources'][:12]}"
    commit = str(getattr(torch.version, "git_version", None))[:12]
    return Path(home) / "xformers" / "operators" / kernels / f"torch-{torch.__version__}-{commit}"


def in_package(package: Path) -> dict[str, Path]:
    """Series -> its folder, for all that the package was built for, oldest first."""
    found = {match[1] + "." + match[2]: path for path in package.glob("torch*")
             if (match := re.fullmatch(r"torch(\d)(\d+)", path.name)) and (path / RECORD).exists()}  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return record


def _of_package(package: Path) -> TorchLibrary | None:
    source = "build tree" if (package / "__init__.py").is_symlink() else "wheel"
    present, folders = series(torch.__version__), in_package(package)
    own = folders.pop(present, None)
    for folder in ([own] if own else []) + list(folders.values()):
        record = _record(folder)
        if record["torch_version"] == torch.__version__:
            return TorchLibrary(folder, record, source, f"built for torch {torch.__version__}")
        # A development version may be any state between two series.
        if re.fullmatch(r"\d+\.\d+\.\d+(\+.*)?", torch.__version__) and present in record["torch_runs_under"]:
            why = f"built for torch {record['torch_version']}, runs under {' and '.join(record['torch_runs_under'])}"
            return TorchLibrary(folder, record, source, why)
    return None


def find(package: Path, build: dict[str, Any]) -> TorchLibrary | None:
    """The one to load, or None where none is for this torch. What is in the cache was asked for, so it comes first."""
    cached = cache_folder(build)
    if (cached / RECORD).exists():
        record = _record(cached)
        if record["torch_version"] == torch.__version__:
            return TorchLibrary(cached, record, "cache", "python -m xformers.build made it for this torch")
    return _of_package(package)
