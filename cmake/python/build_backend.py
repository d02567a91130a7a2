"""The build backend of pyproject.toml: scikit-build-core's, which is told whether to build the CUDA kernels.

They are built where `pip install . -C cmake.define.XFORMERS_CUDA=ON` or the environment variable XFORMERS_CUDA asks for
them, or where nvcc 13 and a GPU are visible; then CUTLASS's headers are a requirement of the build.

Torch is no requirement of the build: what is compiled against is the torch of the environment that is installed into,
which pip's isolation hides from imports, but not from sysconfig.
"""

import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

from scikit_build_core.build import build_editable as _build_editable
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from scikit_build_core.build import build_wheel as _build_wheel
from scikit_build_core.build import get_requires_for_build_editable as _editable_requirements
from scikit_build_core.build import get_requires_for_build_wheel as _wheel_requirements

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

SETTING = "cmake.define.XFORMERS_CUDA"
HOW = f"pip install . -C {SETTING}=ON"


@functools.cache
def find_nvcc():
    """An nvcc of release 13 or later, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for name in (os.environ.get("CUDACXX"), "nvcc", f"{home}/bin/nvcc"):
        path = shutil.which(name) if name else None
        if not path:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release (\d+)", version)
        if release and int(release.group(1)) >= 13:
            return path
    return None


def has_gpu():
    return any(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")) or any(pathlib.Path("/dev").glob("nvidia[0-9]*"))


def cuda(config_settings):
    """Whether the CUDA kernels are built, and why not (None: nobody needs to know)."""
    asked = (config_settings or {}).get(SETTING, os.environ.get("XFORMERS_CUDA", ""))
    if asked:
        return asked.upper() in ("1", "ON", "TRUE", "YES"), None
    if not has_gpu():
        return False, f"no GPU is visible here (to build them all the same: {HOW})"
    if not find_nvcc():
        return False, f"no nvcc 13 was found beside the GPU (install the CUDA toolkit 13, or set CUDACXX, then: {HOW})"
    return True, None


def find_torch():
    """The folder of the package torch of this environment, or None."""
    folders = [pathlib.Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    found = next((folder for folder in folders if (folder / "lib/libtorch_cpu.so").exists()), None)
    spec = None if found else importlib.util.find_spec("torch")
    return found or (spec and pathlib.Path(spec.submodule_search_locations[0]))


def _settings(config_settings):
    wanted, why_not = cuda(config_settings)
    if why_not:
        print(f"xformers: without CUDA kernels, because {why_not}", file=sys.stderr)
    settings = {**(config_settings or {}), SETTING: "ON" if wanted else "OFF"}
    torch = find_torch()
    if torch:
        settings.setdefault("cmake.define.XFORMERS_TORCH_DIR", str(torch))
    nvcc = find_nvcc() if wanted else None
    if nvcc:
        settings.setdefault("cmake.define.CMAKE_CUDA_COMPILER", nvcc)
    return settings


def _requirements(config_settings):
    if not cuda(config_settings)[0]:
        return []
    lines = pathlib.Path("requirements-cuda.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def get_requires_for_build_wheel(config_settings=None):
    return _wheel_requirements(config_settings) + _requirements(config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _editable_requirements(config_settings) + _requirements(config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _build_wheel(wheel_directory, _settings(config_settings), metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _build_editable(wheel_directory, _settings(config_settings), metadata_directory)
