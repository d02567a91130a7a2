"""What this installation is and can do: python -m xformers.info"""

import contextlib
import importlib.metadata
import json
import platform

import torch

from . import __version__, _cpp_lib, _torch_library
from ._cpp_lib import _build_info
from .ops.common import OPERATORS_REGISTRY
from .version import __compat_version__


def get_features_status() -> dict[str, str]:
    """Every registered operator -> "available", or "unavailable" and why."""
    features = {}
    for key in torch.ops.xformers.attention_contracts():
        contract = json.loads(torch.ops.xformers.attention_contract(key))
        status = "available" if contract["AVAILABLE"] else f"unavailable ({contract['NOT_BUILT']})"
        features[f"{contract['OPERATOR_CATEGORY']}.{contract['NAME']}"] = status
    for op in OPERATORS_REGISTRY:
        why_not = getattr(op, "NOT_AVAILABLE", "not part of this build")
        status = "available" if op.is_available() else f"unavailable ({why_not})"
        features.setdefault(f"{op.OPERATOR_CATEGORY}.{op.NAME}", status)
    features["swiglu.fused.p.cpp"] = "available" if hasattr(torch.ops.xformers, "swiglu_packedw") else "not built"
    return features


def _why_not_cuda() -> str:
    if not hasattr(torch.ops.xformers, "why_not_cuda"):
        return "not built (XFORMERS_CUDA is OFF)"
    reason = torch.ops.xformers.why_not_cuda()
    return reason and f"unavailable: {reason}"


def _kernels() -> dict[str, str]:
    ops = torch.ops.xformers
    return {
        "attention.devices": ", ".join(ops.attention_devices()),
        "attention.cuda_kernels": _why_not_cuda() or "available",
        "attention.cpu_kernels.forward": ", ".join(ops.attention_kernels()),
        "attention.cpu_kernels.backward": ", ".join(ops.attention_kernels(True)),
    }


def _machine() -> dict[str, str]:
    rows = {
        "cpu.processor": platform.machine(),
        "cpu.instruction_sets": ", ".join(torch.ops.xformers.cpu_isas()),
        "cpu.threads": str(torch.get_num_threads()),
        "gpu.count": str(torch.cuda.device_count()),
    }
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        prefix = "gpu" if index == 0 else f"gpu.{index}"
        rows[f"{prefix}.name"] = gpu.name
        rows[f"{prefix}.compute_capability"] = f"{gpu.major}.{gpu.minor}"
        rows[f"{prefix}.memory"] = f"{gpu.total_memory / 2**30:.1f} GiB"
    return rows


def _distributed_backends() -> str:
    """Those that this torch was built with."""
    if not torch.distributed.is_available():
        return "not available"
    named = ("gloo", "mpi", "nccl", "ucc", "xccl")
    return ", ".join(name for name in named if getattr(torch.distributed, f"is_{name}_available")()) or "none"


def _checkpoint_solver() -> str:
    """What finds the best policy within a memory budget."""
    for package in ("highspy", "scipy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{package} {importlib.metadata.version(package)}"
    return "unavailable (pip install highspy)"


def _software() -> dict[str, str]:
    from .profiler.profiler_dcgm import DCGM_PROFILER_AVAILABLE

    return {
        "compatible with": __compat_version__,
        "is_triton_available": "False",
        "python.version": platform.python_version(),
        "pytorch.version": torch.__version__,
        "pytorch.cuda": "available" if torch.cuda.is_available() else "not available",
        "dcgm_profiler": "available" if DCGM_PROFILER_AVAILABLE else "not available",
        "distributed.backends": _distributed_backends(),
        "checkpoint.solver": _checkpoint_solver(),
    }


def _wheel_tag() -> str:
    """Of the installed distribution; a build tree has none."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("xformers")
        if distribution.locate_file("xformers") == _cpp_lib._PACKAGE:
            lines = (distribution.read_text("WHEEL") or "").splitlines()
            return ", ".join(line.split(": ")[1] for line in lines if line.startswith("Tag: "))
    return "none"


def _operators() -> dict[str, str]:
    """The library of operators that goes with this torch, and the others that are there."""
    library = _cpp_lib._loaded
    assert library  # or the import would have failed
    return {
        "operators.torch_series": ", ".join(_torch_library.in_package(_cpp_lib._PACKAGE)),
        "operators.loaded": str(library.folder),
        "operators.source": library.source,
        "operators.why": library.why,
        "wheel.tag": _wheel_tag(),
    }


def _build() -> dict[str, str]:
    build = _build_info()
    env = build.pop("env", {})
    cuda = build.pop("cuda", None)
    build = {
        "cuda_version": cuda,
        "hip_version": None,
        "python_version": "any: nothing of the library is compiled against Python",
        **build,
        "cpu_isa": ", ".join(build["cpu_isa"]),
        **{f"env.{name}": value for name, value in env.items()},
    }
    rows = {f"build.{name}": str(value) for name, value in build.items()}
    return {"build.info": "available"} | rows | {"source.privacy": "open source"}


def print_info() -> None:
    """What `python -m xformers.info` says: a line for every operator, kernel, device and setting of the build."""
    rows = get_features_status() | _kernels() | _machine() | _software() | _operators() | _build()
    print(f"xFormers {__version__}")
    for name, status in rows.items():
        print(f"{name + ':':<50} {status}")


if __name__ == "__main__":
    print_info()
