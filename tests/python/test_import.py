"""Importing the package: quick, quiet, and with one clear sentence when it can't work."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xformers

PACKAGE = Path(xformers.__file__).parent


def run(code, path=PACKAGE.parent, **environment):
    env = {**os.environ, "PYTHONPATH": str(path), **environment}
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True)


def copy_of_package(folder, leave_out=()):
    """The package by links, without the entries that the test replaces."""
    package = folder / "xformers"
    package.mkdir()
    for entry in PACKAGE.iterdir():
        if entry.name not in leave_out:
            (package / entry.name).symlink_to(entry)
    return package


@pytest.mark.wall_clock
def test_quick_and_quiet():
    """0.06 s beyond torch is the goal, of a processor's time: a busy or slow machine gets another chance and more."""
    code = """
import time, torch
start = time.process_time()
import xformers, xformers.ops
print(time.process_time() - start)
"""
    seconds = []
    while len(seconds) < 3 and not (seconds and min(seconds) < 0.06):
        result = run(code)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        seconds.append(float(result.stdout))
    assert min(seconds) < 0.12


BROKEN = "raise RuntimeError('this triton is broken')"


@pytest.mark.parametrize("package", ["triton", "flash_attn"])
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_optional_packages_are_left_alone(tmp_path, package, broken):
    """Missing or in pieces: importing is silent and works, as it does for torch alone."""
    if broken:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(BROKEN)
        code, path = "", f"{tmp_path}{os.pathsep}{PACKAGE.parent}"
    else:
        code, path = f"import sys; sys.modules['{package}'] = None\n", PACKAGE.parent
    result = run(code + "import xformers, xformers.ops, xformers.triton, xformers.components", path=path)
    assert result.returncode == 0 and result.stderr == "", result.stderr


COUNT = """
x = torch.randn(1, 8, 2, 16, requires_grad=True)
with FlopCounterMode(display=False) as counter:
    xformers.ops.memory_efficient_attention(x, x, x).sum().backward()
assert counter.get_total_flops() == 7 * 2 * 8 * 8 * 32, counter.get_total_flops()
"""


@pytest.mark.parametrize("first", ["xformers.ops", "torch.utils.flop_counter"])
def test_flops_are_registered_when_their_counter_is_imported(first):
    code = f"import sys, torch, {first}\n"
    if first == "xformers.ops":
        code += "assert 'torch.utils.flop_counter' not in sys.modules\n"
    code += "import xformers.ops\nfrom torch.utils.flop_counter import FlopCounterMode\n" + COUNT
    code += "assert not any('_AtImport' in repr(finder) for finder in sys.meta_path)"
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_ops_are_reachable_as_an_attribute():
    assert run("import xformers; xformers.ops.fmha.attn_bias.LowerTriangularMask()").returncode == 0


def test_info_as_a_program():
    result = subprocess.run([sys.executable, "-m", "xformers.info"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("xFormers ") and result.stderr == ""


def assert_import_error(folder, *fragments):
    result = run("import xformers", path=folder)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: xformers "), result.stderr
    for fragment in fragments:
        assert fragment in last


LIBRARY = xformers._cpp_lib._loaded.folder
RECORD = LIBRARY / "_torch_library.json"


def of_other_torch(folder, library="torch27", version="2.7.1+cu126", runs_under=("2.7",)):
    """A package that was built for another torch alone."""
    package = copy_of_package(folder, leave_out=[entry.name for entry in PACKAGE.glob("torch2*")])
    (package / library).mkdir()
    for entry in LIBRARY.glob("*.so"):
        (package / library / entry.name).symlink_to(entry)
    record = {**json.loads(RECORD.read_text()), "torch_version": version, "torch_runs_under": runs_under}
    (package / library / RECORD.name).write_text(json.dumps(record))
    return package


PIP = f"{sys.executable} -m pip install"
REBUILD = f"{PIP} scikit-build-core cmake ninja && {PIP} --force-reinstall --no-deps --no-build-isolation"


def test_other_torch(tmp_path):
    of_other_torch(tmp_path)
    assert_import_error(
        tmp_path,
        "has operators for torch 2.7;",
        f"this is torch {torch.__version__} in {Path(torch.__file__).parent}.  ",
        f"Fix: {sys.executable} -m xformers.build ",
        f"; or {PIP} 'torch==2.7.*'",
    )


def test_other_torch_in_a_folder_of_its_own(tmp_path):
    """As `pip install --target` leaves it, named by PYTHONPATH: pip has to write there."""
    ours, torchs = tmp_path / "ours", tmp_path / "torch's"
    ours.mkdir(), torchs.mkdir()
    of_other_torch(ours)
    (torchs / "torch").symlink_to(Path(torch.__file__).parent)
    command = shlex.join([*PIP.split(), "--upgrade", "--target", str(torchs), "torch==2.7.*"])
    assert_import_error(f"{ours}{os.pathsep}{torchs}", f"; or {command}")


def test_library_that_does_not_load(tmp_path):
    package = of_other_torch(tmp_path, LIBRARY.name, torch.__version__)
    (package / LIBRARY.name / "libxformers.so").unlink()
    (package / LIBRARY.name / "libxformers.so").write_text("not a library")
    assert_import_error(tmp_path, "could not load", "Fix: build it for this torch, ")


def test_library_that_does_not_load_beside_the_sources_of_the_package(tmp_path):
    """As `pip install <clone>` leaves it, without sources of its own: the command names that clone."""
    folder, sources = tmp_path / "site", tmp_path / "the clone"
    for made in (folder, sources, folder / "xformers-0.1.0.dist-info"):
        made.mkdir()
    package = of_other_torch(folder, LIBRARY.name, torch.__version__)
    (package / "libxformers_kernels.so").unlink()
    (package / "_sources").unlink(missing_ok=True)
    (sources / "pyproject.toml").touch()
    (folder / "xformers-0.1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: xformers\nVersion: 0.1.0\n")
    url = {"url": sources.as_uri(), "dir_info": {}}
    (folder / "xformers-0.1.0.dist-info/direct_url.json").write_text(json.dumps(url))
    assert_import_error(
        folder, f"build it for this torch, {REBUILD} --upgrade --target {folder} {shlex.quote(str(sources))}"
    )


def test_loader_error_in_full(tmp_path):
    """XFORMERS_MORE_DETAILS=1: all that the loader said, and where."""
    package = of_other_torch(tmp_path, LIBRARY.name, torch.__version__)
    (package / "libxformers_kernels.so").unlink()
    result = run("import xformers", path=tmp_path, XFORMERS_MORE_DETAILS="1")
    assert "OSError: " in result.stderr and "XFORMERS_MORE_DETAILS=1 shows all" not in result.stderr
    assert "OSError: " not in run("import xformers", path=tmp_path, XFORMERS_MORE_DETAILS=None).stderr


def test_source_tree_without_libraries(tmp_path):
    package = tmp_path / "python"
    package.mkdir()
    copy_of_package(package, leave_out=["_build_info.json"])
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "xformers").mkdir()
    assert_import_error(package, "has no libraries", f"{REBUILD} -e {tmp_path}")


BF16 = """
import torch, xformers
linear = torch.nn.Linear(64, 64).bfloat16()
x = torch.ones(64, 64, dtype=torch.bfloat16)
assert (linear(x) @ x).isfinite().all()
assert torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]).isfinite().all()
"""


def test_bf16_matmuls_of_torch_work():
    """They die with SIGILL on machines that show AMX without its tile geometry, unless oneDNN is held below AMX."""
    result = run(BF16, ONEDNN_MAX_CPU_ISA=None)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr}"


@pytest.mark.parametrize("value", ["AVX2", "AVX512_CORE"])
def test_chosen_onednn_isa_is_kept(value):
    code = """
import ctypes, xformers
getenv = ctypes.CDLL(None).getenv  # os.environ does not see what a library sets
getenv.restype = ctypes.c_char_p
print(getenv(b"ONEDNN_MAX_CPU_ISA").decode())
"""
    assert run(code, ONEDNN_MAX_CPU_ISA=value).stdout.strip() == value
