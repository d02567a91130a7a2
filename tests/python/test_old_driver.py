"""A driver that is too old: one sentence says so, and the CPU keeps working."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

DRIVER = """
extern "C" int cuInit(unsigned) { return 0; }
extern "C" int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
"""
PROGRAM = """
import torch
from xformers import ops
print(torch.ops.xformers.why_not_cuda())
q = torch.ones(1, 8, 1, 16)
print(ops.memory_efficient_attention(q, q, q).sum().item())
"""
compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


@pytest.mark.skipif("cuda" not in torch.ops.xformers.attention_devices(), reason="built without CUDA")
@pytest.mark.skipif(compiler is None, reason="needs a C++ compiler for a driver of its own")
def test_one_sentence(tmp_path):
    (tmp_path / "driver.cpp").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.cpp"], check=True, timeout=120)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("LD_LIBRARY_PATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    expected = torch.version.cuda.split(".")[0] + ".0 or later"
    first, second = result.stdout.splitlines()
    assert first == f"the NVIDIA driver is for CUDA 12.4, expected {expected}"
    assert second == "128.0"
