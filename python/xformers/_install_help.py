"""Commands that mend an installation, as sentences of an ImportError: they work from any folder."""

import json
import shlex
import site
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

_OUR_SOURCES = Path(__file__).parents[2]
_BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja")


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def _target(folder: Path) -> list[str]:
    """Where pip has to put a package so that it replaces the one in `folder`: --target for a folder that is looked at
    before the environment's own, as PYTHONPATH names them."""
    path = [Path(entry or ".").resolve() for entry in sys.path]
    own = [Path(entry).resolve() for entry in (*site.getsitepackages(), site.getusersitepackages())]
    folder = folder.resolve()
    before = path[: min((path.index(entry) for entry in own if entry in path), default=len(path))]
    return ["--upgrade", "--target", str(folder)] if folder in before else []


def _sources(package: Path) -> list[str]:
    """pip's arguments for the folder that the package was installed from: of a clone, of `pip install .` or `-e .`;
    none where it came from a wheel or an index."""
    if (_OUR_SOURCES / "pyproject.toml").exists() and (_OUR_SOURCES / "xformers").is_dir():
        return ["-e", str(_OUR_SOURCES)]
    for distribution in metadata.distributions(name="xformers", path=[str(package.parent)]):
        url = json.loads(distribution.read_text("direct_url.json") or "{}").get("url", "")
        folder = Path(unquote(urlsplit(url).path))
        if url.startswith("file://") and (folder / "pyproject.toml").exists():
            return [str(folder)]
    return []


def build_command() -> str:
    """Compiles the operators for the torch that was imported, into the user's cache."""
    return shlex.join([sys.executable, "-m", "xformers.build"])


def take_torch(version: str) -> str:
    """Installs torch of a series, such as "2.11", in place of the one that was imported."""
    return _pip(*_target(Path(torch.__file__).parents[1]), f"torch=={version}.*")


def rebuild(package: Path) -> str:
    """Builds the package anew for the torch that was imported, if its sources are here; else how to get there."""
    options = ["--force-reinstall", "--no-deps", "--no-build-isolation"]
    sources = _sources(package)
    target = _target(package.parent) if sources[:1] != ["-e"] else []
    command = f"{_pip(*_BUILD_TOOLS)} && {_pip(*options, *target, *(sources or ['.']))}"
    return command if sources else f"in a clone of its repository: {command}"
