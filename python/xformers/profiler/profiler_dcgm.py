"""Counters of the GPU's units over some steps, from NVIDIA's Data Center GPU Manager, where its Python bindings lie."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .profiler import _Profiler

_BINDINGS = "/usr/local/dcgm/bindings/python3"
# Names of dcgm_fields, and what the summary calls them.
_FIELDS = {
    "DCGM_FI_PROF_SM_ACTIVE": "SM active",
    "DCGM_FI_PROF_SM_OCCUPANCY": "SM occupancy",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "Tensor cores active",
    "DCGM_FI_PROF_DRAM_ACTIVE": "DRAM active",
    "DCGM_FI_PROF_PCIE_TX_BYTES": "PCIe sent (B/s)",
    "DCGM_FI_PROF_PCIE_RX_BYTES": "PCIe received (B/s)",
    "DCGM_FI_PROF_NVLINK_TX_BYTES": "NVLink sent (B/s)",
    "DCGM_FI_PROF_NVLINK_RX_BYTES": "NVLink received (B/s)",
}


def _bindings() -> tuple[Any, Any] | None:
    """(DcgmReader's class, dcgm_fields), None where they are missing."""
    if Path(_BINDINGS).is_dir() and _BINDINGS not in sys.path:
        sys.path.append(_BINDINGS)
    try:
        import dcgm_fields  # type: ignore[import-not-found]
        from DcgmReader import DcgmReader  # type: ignore[import-not-found]
    except Exception:  # missing, or without its library
        return None
    return DcgmReader, dcgm_fields


DCGM_PROFILER_AVAILABLE: bool = Path(_BINDINGS).is_dir() and _bindings() is not None


class DCGMProfiler:
    """Averages of eight counters over its steps, per GPU, in the summary. Without the bindings it only says so.

    gpus_to_profile: numbers of GPUs, by default this process's. field_ids_to_profile: dcgm_fields' numbers.
    updateFreq: microseconds between two samples.
    """

    def __init__(
        self,
        main_profiler: "_Profiler",
        gpus_to_profile: Sequence[int] | None = None,
        field_ids_to_profile: Sequence[int] | None = None,
        updateFreq: int = 5000,
    ) -> None:
        self.main_profiler = main_profiler
        self._reader: Any = None
        self._names: dict[int, str] = {}
        self._values: dict[tuple[int, int], list[float]] = defaultdict(list)
        found = _bindings()
        if found is None:
            from .profiler import logger

            logger.warning("xformers.profiler: DCGM's bindings are not in %s: no counters", _BINDINGS)
            main_profiler.summary.append(("DCGM", "not available: no bindings"))
            return
        reader, fields = found
        self._names = {getattr(fields, name): title for name, title in _FIELDS.items()}
        if gpus_to_profile is None:
            gpus_to_profile = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        self._reader = reader(
            fieldIds=list(field_ids_to_profile or self._names),
            updateFrequency=updateFreq,
            fieldGroupName=f"xformers_{main_profiler.worker_name}",
            gpuIds=list(gpus_to_profile),
        )

    def _collect(self, keep: bool) -> None:
        if self._reader is None:
            return
        for gpu, fields in self._reader.GetAllGpuValuesAsFieldIdDictSinceLastCall().items():
            for number, series in fields.items():
                if keep:
                    self._values[(gpu, number)] += [float(v.value) for v in series if not v.isBlank]

    def __enter__(self) -> None:
        self._collect(keep=False)

    def step(self) -> None:
        self._collect(keep=True)

    def __exit__(self, *_: Any) -> None:
        if self._reader is None:
            return
        self._collect(keep=True)
        for (gpu, number), values in sorted(self._values.items()):
            if values:
                title = f"GPU {gpu} {self._names.get(number, number)}"
                self.main_profiler.summary.append((title, f"{sum(values) / len(values):.3f}"))
        self._reader.Shutdown()
