"""Projects outside the repository, built against an installed xformers."""

import subprocess
from pathlib import Path

import torch.utils
from shell import ROOT, run

HERE = Path(__file__).parent


def test_operators(build_outside):
    folder = build_outside(HERE / "consumer", CONSUMER_SOURCE="attention.cpp")
    assert "max error" in run(folder / "consumer")


def test_every_operator_header(build_outside, prefix, tmp_path):
    headers = sorted(
        header.relative_to(prefix / "include")
        for folder in ("ops", "nn")
        for header in (prefix / "include/xformers" / folder).rglob("*.h")
    )
    assert len(headers) >= 20
    source = tmp_path / "headers.cpp"
    source.write_text("".join(f"#include <{header}>\n" for header in headers) + "int main() {}\n")
    run(build_outside(HERE / "consumer", CONSUMER_SOURCE=source) / "consumer")


def test_kernels_without_torch(build_outside):
    folder = build_outside(
        HERE / "kernels_only",
        CONSUMER_SOURCE=ROOT / "examples/kernels_alone.cpp",
        Python_EXECUTABLE="/nonexistent",
        XFORMERS_TORCH_DIR="/nonexistent",
    )
    assert "lse" in run(folder / "kernels_only")
    assert "torch" not in run("ldd", folder / "kernels_only")


def test_missing_torch_is_explained(prefix, tmp_path):
    variables = [f"-Dxformers_ROOT={prefix}", "-DPython_EXECUTABLE=/nonexistent"]
    command = ["cmake", "-G", "Ninja", "-S", HERE / "consumer", "-B", tmp_path, *variables]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "torch >= 2.11, < 2.12 was not found (asked: /nonexistent). Fix: pip install 'torch>=2.11,<2.12'" in message


def test_torch_is_found_through_cmake_prefix_path(build_outside, prefix):
    variables = {"Python_EXECUTABLE": "/nonexistent", "CMAKE_PREFIX_PATH": torch.utils.cmake_prefix_path}
    folder = build_outside(HERE / "consumer", CONSUMER_SOURCE="attention.cpp", **variables)
    assert "max error" in run(folder / "consumer")
    cache = (folder / "CMakeCache.txt").read_text()
    assert "XFORMERS_" not in cache, "the consumer's cache is its own"


def test_installed_libraries_look_only_beside_themselves(prefix):
    libraries = sorted(prefix.rglob("*.so"))
    parts = ("", "_attention", "_attention_kernels", "_kernels", "_ops")
    assert [library.name for library in libraries] == [f"libxformers{part}.so" for part in parts]
    for library in libraries:
        paths = [line for line in run("readelf", "-d", library).splitlines() if "PATH" in line]
        assert len(paths) == 1 and "(RUNPATH)" in paths[0] and "[$ORIGIN]" in paths[0], paths


def test_installed_headers_stand_alone(prefix):
    headers = sorted((prefix / "include").rglob("*.h"))
    kernels = [header for header in headers if not {"ops", "nn"} & set(header.relative_to(prefix).parts)]
    assert len(kernels) >= 6
    for header in kernels:
        run("c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", "-I", prefix / "include",
            "-include", header, "/dev/null")  # fmt: skip
