"""Which operator library is loaded, and `python -m xformers.build`, which makes one for a torch that has none."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from xformers._cpp_lib import _PACKAGE, _build_info

import xformers
from xformers import _torch_library, build

LIBRARY = xformers._cpp_lib._loaded.folder
BUILD = {"version": "0.1.0", "sources": "0123456789abcdef"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of empty folders: add(series, exact version, the series that it runs under)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(series, version, runs_under=None, folder=None):
        folder = folder or tmp_path / "package" / f"torch{series.replace('.', '')}"
        folder.mkdir(parents=True)
        record = {"torch_version": version, "torch_runs_under": runs_under or [series]}
        (folder / _torch_library.RECORD).write_text(json.dumps(record))
        return folder

    add.root = tmp_path / "package"
    add.root.mkdir()
    return add


def found(package, version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    library = _torch_library.find(package.root, BUILD)
    return library and library.folder.name


@pytest.mark.parametrize(
    ("version", "folder"),
    [
        ("2.10.0+cpu", "torch211"),
        ("2.11.1", "torch211"),
        ("2.12.1+cu130", "torch212"),
        ("2.13.0", None),
        ("2.9.1", None),
        ("2.12.0.dev20260101+cu130", None),
        ("2.12.0a0+git1234567", None),
        ("2.110.0", None),
        ("3.11.0", None),
    ],
)
def test_series(package, version, folder, monkeypatch):
    package("2.12", "2.12.0")
    package("2.11", "2.11.0", ["2.10", "2.11"])
    assert found(package, version, monkeypatch) == folder


def test_development_version_that_the_library_was_built_with(package, monkeypatch):
    package("2.12", "2.12.0a0+git1234567")
    assert found(package, "2.12.0a0+git1234567", monkeypatch) == "torch212"


def test_series_are_listed_oldest_first(package):
    for series in ("2.9", "2.100", "2.10"):
        package(series, series + ".0")
    (package.root / "torch213").mkdir()  # without a record: half of a copy
    assert list(_torch_library.in_package(package.root)) == ["2.9", "2.10", "2.100"]


def test_cache_comes_first_for_its_torch_alone(package, monkeypatch):
    package("2.12", "2.12.0")
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    cached = _torch_library.cache_folder(BUILD)
    package("2.12", "2.12.1", folder=cached)
    assert found(package, "2.12.1", monkeypatch) == cached.name
    (cached / _torch_library.RECORD).write_text(json.dumps({"torch_version": "2.12.2", "torch_runs_under": ["2.12"]}))
    assert found(package, "2.12.1", monkeypatch) == "torch212"
    assert _torch_library.cache_folder({**BUILD, "sources": "another"}) != cached
    monkeypatch.setattr(torch.version, "git_version", "another")
    assert _torch_library.cache_folder(BUILD) != cached


def test_loaded_library_is_reported():
    output = subprocess.run([sys.executable, "-m", "xformers.info"], capture_output=True, text=True, check=True).stdout
    rows = dict(line.split(":", 1) for line in output.splitlines() if ":" in line)
    assert rows["operators.loaded"].strip() == str(LIBRARY)
    assert rows["operators.source"].strip() == xformers._cpp_lib._loaded.source
    assert rows["operators.torch_series"].strip() == ", ".join(_torch_library.in_package(_PACKAGE))
    assert rows["build.torch_version"].strip() == _build_info()["torch_version"]


def command(*arguments, **environment):
    env = {**os.environ, "PYTHONPATH": str(_PACKAGE.parent), **environment}
    return subprocess.run([sys.executable, "-m", "xformers.build", *arguments], env=env, capture_output=True, text=True)


def test_nothing_is_built_where_a_library_is_there(tmp_path):
    result = command(XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 0 and str(LIBRARY) in result.stdout, result.stderr
    assert not list(tmp_path.iterdir())


def refused(tmp_path, *fragments, **environment):
    result = command("--force", XDG_CACHE_HOME=str(tmp_path / "cache"), **environment)
    assert result.returncode == 1 and result.stderr.startswith("xformers.build: "), result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_no_compiler(tmp_path):
    refused(tmp_path, "no-such-compiler was not found", "Fix: install g++ 12 or later", CXX="no-such-compiler")


def test_compiler_that_fails(tmp_path):
    refused(tmp_path, "failed with status", "nothing was installed", CXX=shutil.which("false"))


def test_cache_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    result = command("--force", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert result.returncode == 1 and "can't be written" in result.stderr and "Fix: " in result.stderr


def test_two_builds_at_once_leave_one_library(tmp_path):
    """Both finish, and what lies there is one of the two, whole."""
    target = tmp_path / "cache/torch-2.99.0"
    start = threading.Barrier(2)
    failures = []

    def publish(mark):
        made = build.staging_folder(target) / "made"
        made.mkdir()
        for name in (_torch_library.RECORD, "libxformers.so"):
            (made / name).write_text(mark)
        start.wait()
        try:
            build.publish(made, target)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(mark,)) for mark in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({path.read_text() for path in target.iterdir()}) == 1 and len(list(target.iterdir())) == 2


def test_forced_build_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "torch-2.99.0"
    for mark in "ab":
        made = build.staging_folder(target) / "made"
        made.mkdir()
        (made / _torch_library.RECORD).write_text(mark)
        build.publish(made, target, replace=True)
    assert (target / _torch_library.RECORD).read_text() == "b"
