"""The C++ packages: version header, pkg-config, the archive of the kernels, versioned names, public symbols."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from shell import ROOT, run

HERE = Path(__file__).parent


def project_version():
    return re.search(r'^__version__ = "(.+)"', (ROOT / "python/xformers/version.py").read_text(), re.MULTILINE).group(1)


@pytest.fixture(scope="module")
def kernels_archive(build_dir, tmp_path_factory):
    """The unpacked archive of the kernels alone, of whatever the build tree holds."""
    folder = tmp_path_factory.mktemp("archive")
    config = build_dir / "CPackConfig.cmake"
    run("cpack", "--config", config, "-B", folder, "-D", "CPACK_COMPONENTS_ALL=kernels", cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (top,) = (folder / "unpacked").iterdir()
    return top


def test_version_header(prefix, tmp_path):
    source = tmp_path / "version.cpp"
    source.write_text("#include <xformers/version.h>\nXFORMERS_VERSION_STRING XFORMERS_VERSION\n")
    text, number = run("c++", "-E", "-P", "-I", prefix / "include", source).split(maxsplit=1)
    major, minor, patch = (int(part) for part in project_version().split("."))
    assert text == f'"{project_version()}"'
    assert eval(number) == major * 1_000_000 + minor * 1000 + patch


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_pkg_config(prefix, tmp_path):
    def ask(*words):
        return run("pkg-config", *words, env={"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig", "PATH": "/usr/bin:/bin"})

    assert ask("--modversion", "xformers-kernels").strip() == project_version()
    flags = shlex.split(ask("--cflags", "--libs", "xformers-kernels"))
    run("c++", ROOT / "examples/kernels_alone.cpp", "-o", tmp_path / "program", *flags)
    assert "lse" in run(tmp_path / "program")


def test_archive_of_kernels(kernels_archive, tmp_path):
    assert kernels_archive.name.startswith(f"xformers-{project_version()}-")
    files = [str(file.relative_to(kernels_archive)) for file in kernels_archive.rglob("*") if file.is_file()]
    assert "share/licenses/xformers/LICENSE" in files
    assert not [
        file for file in files if "xformers/ops/" in file or "xformers/nn/" in file or "libxformers_ops" in file
    ]
    source = ROOT / "examples/kernels_alone.cpp"
    options = [f"-Dxformers_ROOT={kernels_archive}", f"-DCONSUMER_SOURCE={source}", "-DPython_EXECUTABLE=/nonexistent"]
    run("cmake", "-G", "Ninja", "-S", HERE / "kernels_only", "-B", tmp_path, *options)
    run("cmake", "--build", tmp_path)
    assert "lse" in run(tmp_path / "kernels_only")


def configure_consumer(folder, *options):
    """The message of a find_package(xformers) that must fail."""
    command = [
        "cmake",
        "-G",
        "Ninja",
        "-S",
        HERE / "consumer",
        "-B",
        folder,
        "-DCONSUMER_SOURCE=attention.cpp",
        *options,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    return " ".join(result.stderr.split())


def test_archive_of_kernels_has_no_operators(kernels_archive, tmp_path):
    message = configure_consumer(tmp_path, f"-Dxformers_ROOT={kernels_archive}")
    assert "this installation holds the kernels alone" in message


def test_find_package_refuses_another_series_of_torch(prefix, tmp_path):
    if not (prefix / "include/xformers/ops").exists():
        pytest.skip("a build of the kernels alone")
    torch = tmp_path / "torch"
    for file in ("lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h"):
        (torch / file).parent.mkdir(parents=True, exist_ok=True)
        (torch / file).touch()
    header = torch / "include/torch/headeronly/version.h"
    header.parent.mkdir(parents=True)
    numbers = {"MAJOR": 2, "MINOR": 9, "PATCH": 1}
    header.write_text("".join(f"#define TORCH_VERSION_{name} {number}\n" for name, number in numbers.items()))
    message = configure_consumer(tmp_path / "build", f"-Dxformers_ROOT={prefix}", f"-DXFORMERS_TORCH_DIR={torch}")
    assert f"torch in {torch} is 2.9.1, expected torch >= 2." in message and "Fix: pip install" in message


def test_sonames(build_dir, tmp_path):
    compiler = re.search(
        r"^CMAKE_CXX_COMPILER:.*=(.+)$", (build_dir / "CMakeCache.txt").read_text(), re.MULTILINE
    ).group(1)
    off = [f"-DXFORMERS_{name}=OFF" for name in ("OPS", "DEVELOPER", "EXAMPLES", "CUDA")]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_BUILD_TYPE=Release", "-DXFORMERS_SONAMES=ON", *off)  # fmt: skip
    names = set(re.findall(r"SONAME = (\S+)", (tmp_path / "build.ninja").read_text()))
    series = ".".join(project_version().split(".")[:2])
    assert names == {f"libxformers_{name}.so.{series}" for name in ("kernels", "attention_kernels")}


def test_public_symbols(build_dir):
    run(sys.executable, ROOT / "scripts/release/symbols.py", build_dir)
