"""What devices can do at most, from the makers' data sheets: dense figures, TFLOP/s and bytes per second."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .. import _profiler_library

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


@dataclass
class DeviceLimit:
    """A row: `name` is part of what the driver calls the device, `sm` its compute capability."""

    name: str = "default"
    source: str = ""
    sm: tuple[int, int] = (0, 0)
    gmem_bandwidth: float = float("inf")  # bytes per second
    gemm_tflops: dict[torch.dtype, float] = field(default_factory=dict)  # float32: TF32 from Ampere on

    def _row(self) -> dict[str, Any]:
        """As the library has it."""
        names = {dtype: name for name, dtype in _DTYPES.items()}
        tflops = {names[dtype]: value for dtype, value in self.gemm_tflops.items() if dtype in names}
        bandwidth = self.gmem_bandwidth if self.gmem_bandwidth != float("inf") else 0.0
        return {
            "name": self.name,
            "source": self.source,
            "sm": list(self.sm),
            "bytes_per_second": bandwidth,
            "tflops": tflops,
        }


def _from_row(row: dict[str, Any]) -> DeviceLimit:
    tflops = {_DTYPES[name]: value for name, value in row["tflops"].items() if value > 0}
    return DeviceLimit(row["name"], row["source"], tuple(row["sm"]), row["bytes_per_second"], tflops)


DEVICE_LIMITS: tuple[DeviceLimit, ...] = tuple(_from_row(row) for row in _profiler_library.call("device_limits"))
_added: list[DeviceLimit] = []


def add_device_limit(limit: DeviceLimit) -> None:
    """Adds a row, which comes before those of the library that have the same name."""
    _added.insert(0, limit)


def get_device_limits(device: Any) -> DeviceLimit | None:
    """The row of a device: its compute capability, and the longest name that is part of the device's. None where there
    is none, and for the CPU unless a row named "CPU" was added."""
    device = torch.device(device)
    if device.type == "cuda":
        return _find(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return _find(device.type.upper(), (0, 0))


def _find(name: str, capability: tuple[int, int]) -> DeviceLimit | None:
    matching = [r for r in (*_added, *DEVICE_LIMITS) if tuple(r.sm) == tuple(capability) and r.name in name]
    return max(matching, key=lambda row: len(row.name), default=None)
