"""python -m xformers.info"""

import subprocess
import sys
import time

import pytest
import torch

import xformers
from xformers import info
from xformers.ops.common import OPERATORS_REGISTRY


@pytest.fixture(scope="module")
def rows():
    result = subprocess.run([sys.executable, "-m", "xformers.info"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    first, *lines = result.stdout.splitlines()
    assert first == f"xFormers {xformers.__version__}"
    assert all(line[50] == " " or len(line.split(": ")[0]) >= 50 for line in lines)
    return {name.strip(): value.strip() for name, value in (line.split(":", 1) for line in lines)}


@pytest.mark.parametrize("key", torch.ops.xformers.attention_contracts())
def test_operators(rows, key):
    status = info.get_features_status()
    name = next(name for name in status if name.split(".")[1].split("@")[0] == key)
    assert rows[name] == status[name]
    assert status[name].startswith("unavailable (" if key.startswith("ck") else "available")


def test_every_registered_operator(rows):
    for op in OPERATORS_REGISTRY:
        assert rows[f"{op.OPERATOR_CATEGORY}.{op.NAME}"].startswith(
            "available" if op.is_available() else "unavailable ("
        )


def test_distributed_backends(rows):
    named = rows["distributed.backends"].split(", ")
    assert ("gloo" in named) == torch.distributed.is_gloo_available()
    assert ("nccl" in named) == torch.distributed.is_nccl_available()


def test_cuda_row(rows):
    """One sentence that says why no kernel runs on a GPU here, or that they do."""
    built = torch._C._dispatch_has_kernel_for_dispatch_key("xformers::attention_forward", "CUDA")
    expected = "available" if torch.cuda.is_available() else "unavailable: there is no "
    assert rows["attention.cuda_kernels"].startswith(expected if built else "not built (XFORMERS_CUDA is OFF)")


def test_flash_version(rows):
    assert rows["memory_efficient_attention.fa2F@2.6.3"] == "available"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("is_triton_available", "False"),
        ("pytorch.version", torch.__version__),
        ("pytorch.cuda", "available" if torch.cuda.is_available() else "not available"),
        ("checkpoint.solver", info._checkpoint_solver()),
        ("gpu.count", str(torch.cuda.device_count())),
        ("compatible with", "0.0.28"),
        ("build.info", "available"),
        ("build.version", xformers.__version__),
        ("build.hip_version", "None"),
        ("attention.devices", ", ".join(torch.ops.xformers.attention_devices())),
        ("cpu.instruction_sets", ", ".join(torch.ops.xformers.cpu_isas())),
    ],
)
def test_row(rows, name, value):
    assert rows[name] == value


def test_what_built_it(rows):
    assert rows["build.compiler_version"].count(".") >= 1
    assert rows["build.torch_version"].startswith("2.")
    cuda_rows = [rows[f"build.{name}"] for name in ("cuda_version", "nvcc_version", "cuda_archs")]
    assert ("None" in cuda_rows) == ("cuda" not in torch.ops.xformers.attention_devices())
    for variable in ("TORCH_CUDA_ARCH_LIST", "XFORMERS_BUILD_TYPE", "NVCC_FLAGS", "XFORMERS_PACKAGE_FROM"):
        assert f"build.env.{variable}" in rows


@pytest.mark.wall_clock
def test_is_quick():
    start = time.perf_counter()
    for _ in range(10):
        info.get_features_status()
    assert (time.perf_counter() - start) / 10 < 0.1


def test_gpus_are_listed(monkeypatch, capsys):
    class Gpu:
        name, major, minor, total_memory = "Some GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Gpu)
    info.print_info()
    out = capsys.readouterr().out
    for name in ("gpu.name", "gpu.1.name"):
        assert f"{name + ':':<50} Some GPU" in out
    assert f"{'gpu.compute_capability:':<50} 9.0" in out and f"{'gpu.memory:':<50} 80.0 GiB" in out
