"""The wheel: what it carries, and that it works from a fresh environment."""

import json
import os
import re
import sys
import sysconfig
import zipfile

import pytest
from shell import ROOT, run

# What any Linux has, and what `import torch` has already loaded.
SYSTEM = re.compile(r"lib(c|m|gcc_s|stdc\+\+|pthread|dl|gomp)\.so|ld-linux")
TORCH = re.compile(r"lib(torch|torch_cpu|c10)\.so")

# What a library of ours stands on.
OURS = {
    "libxformers.so": {"libxformers_ops.so"},
    "libxformers_ops.so": {"libxformers_attention.so", "libxformers_kernels.so"},
    "libxformers_attention.so": {"libxformers_attention_kernels.so"},
    "libxformers_kernels.so": {"libxformers_attention_kernels.so"},
}
LIBRARIES = ("libxformers_attention_kernels.so", "libxformers_profiler.so", *OURS)
OF_TORCH = {"libxformers.so", "libxformers_ops.so", "libxformers_attention.so"}  # in the folder of their torch series

USE = """
import importlib.metadata as metadata, pathlib, torch, xformers, xformers.ops
files = metadata.distribution("xformers").files
assert metadata.version("xformers") == xformers.__version__ == xformers.version.__version__, xformers.__version__
assert any(file.name == "RECORD" for file in files)
q = torch.randn(1, 7, 2, 8)
out = xformers.ops.memory_efficient_attention(q, q, q)
expected = torch.nn.functional.scaled_dot_product_attention(*[q.transpose(1, 2)] * 3).transpose(1, 2)
torch.testing.assert_close(out, expected)
import xformers.profiler
assert xformers.profiler.api.DEFAULT_SCHEDULE and xformers.profiler.device_limits.DEVICE_LIMITS
print(pathlib.Path(xformers.__file__).parent)
"""


@pytest.fixture(scope="module")
def compiler(build_dir):
    """That of the build tree, so that a compiler cache knows the sources already."""
    cache = (build_dir / "CMakeCache.txt").read_text()
    return re.search(r"^CMAKE_CXX_COMPILER:.*=(.+)$", cache, re.MULTILINE).group(1)


@pytest.fixture(scope="module")
def wheel(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder,
        "--disable-pip-version-check", env={**os.environ, "CXX": compiler, "XFORMERS_CUDA": "OFF"})  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def fresh_environment(folder):
    """(python, site-packages) of an environment to which only torch and what it needs come from that of the tests."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{site}/outer.pth", "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return python, site


def test_content(wheel, tmp_path):
    version = re.search(r'"(.+)"', (ROOT / "python/xformers/version.py").read_text().split("__version__")[1]).group(1)
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"xformers-{version}-py3-none-{platform}.whl"

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    package = tmp_path / "xformers"
    sources = {p.relative_to(ROOT / "python/xformers") for p in (ROOT / "python/xformers").rglob("*.py")}
    assert {p.relative_to(package) for p in package.rglob("*.py") if "_sources" not in p.parts} == sources
    assert (package / "py.typed").exists() and (package / "operators.pyi").exists()
    folders = {p.name for p in tmp_path.iterdir()}
    assert folders == {"xformers", f"xformers-{version}.dist-info"}

    info = json.loads((package / "_build_info.json").read_text())
    assert info["version"] == version and info["cpu_isa"] and len(info["sources"]) == 64
    record = json.loads((package / "torch211/_torch_library.json").read_text())
    assert record["torch_version"].startswith("2.11.") and record["torch_runs_under"] == ["2.10", "2.11"]
    assert {p.relative_to(package).as_posix() for p in package.rglob("*.so")} == {
        f"torch211/{name}" if name in OF_TORCH else name for name in LIBRARIES
    }
    carried = {p.relative_to(ROOT) for top in ("ops", "nn") for p in (ROOT / "xformers" / top).rglob("*.cpp")}
    assert all((package / "_sources" / source).exists() for source in carried)
    assert (package / "_sources/third_party/nlohmann_json/nlohmann/json.hpp").exists()

    for library in LIBRARIES:
        folder = package / "torch211" if library in OF_TORCH else package
        dynamic = run("readelf", "-d", folder / library)
        assert re.findall(r"\(RU?N?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN"]
        needed = {name for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not SYSTEM.match(name)}
        if library in OURS:
            assert OURS[library] <= needed
            needed = {name for name in needed if not TORCH.match(name)} - set(LIBRARIES)
        assert not needed, f"{library} needs {needed}, which the wheel doesn't carry"
        inside = run("nm", "-D", "--defined-only", folder / library)
        assert "inflate" not in inside, f"{library} shows symbols of the zlib inside of it"


def test_fresh_environment(wheel, tmp_path):
    python, site = fresh_environment(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", wheel)
    used = run(python, "-c", USE, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}).strip()
    assert used == f"{site}/xformers"


def test_editable(wheel, compiler, tmp_path):  # after the wheel, whose objects it finds in the same build folder
    python, site = fresh_environment(tmp_path / "venv")
    environment = {**os.environ, "CXX": compiler, "XFORMERS_CUDA": "OFF"}
    run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-e", ROOT,
        env=environment)  # fmt: skip
    used = run(python, "-c", USE, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}).strip()
    assert used == str(ROOT / "python/xformers")
