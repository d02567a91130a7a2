"""Fixtures: the build tree under test, an installation of it, and projects built against that."""

import os
import sys
from pathlib import Path

import pytest
from shell import ROOT, run


@pytest.fixture(scope="session")
def build_dir():
    folder = Path(os.environ.get("XFORMERS_BUILD_DIR", ROOT / "build/release")).resolve()
    assert (folder / "CMakeCache.txt").exists(), f"{folder} is not a build tree.  Fix: set XFORMERS_BUILD_DIR"
    return folder


@pytest.fixture(scope="session")
def prefix(build_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build_dir, "--prefix", folder)
    return folder


@pytest.fixture
def build_outside(prefix, tmp_path):
    """Builds a project against the installed xformers and returns the folder of its programs."""

    def build(source, **variables):
        folder = tmp_path / "build"
        variables = {"xformers_ROOT": prefix, "Python_EXECUTABLE": sys.executable, **variables}
        definitions = [f"-D{name}={value}" for name, value in variables.items()]
        run("cmake", "-G", "Ninja", "-S", source, "-B", folder, *definitions)
        run("cmake", "--build", folder, "-j1")
        return folder

    return build
