"""What this installation is and can do: python -m xformers.info"""

import torch

from . import __version__
from ._cpp_lib import _build_info
from .version import __compat_version__


def get_features_status() -> dict[str, str]:
    """The registered operators and the kernels behind attention, as name -> status."""
    names = sorted(
        {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("xformers::")}
    )
    features = {name.replace("::", "."): "available" for name in names}
    features["memory_efficient_attention.forward"] = ", ".join(torch.ops.xformers.attention_kernels())
    features["memory_efficient_attention.backward"] = ", ".join(torch.ops.xformers.attention_kernels(True))
    return features


def print_info() -> None:
    rows = get_features_status()
    rows["compatible with"] = __compat_version__
    rows["cpu.instruction_sets"] = ", ".join(torch.ops.xformers.cpu_isas())
    rows["cpu.threads"] = str(torch.get_num_threads())
    rows["is_triton_available"] = "False"
    rows["pytorch.version"] = torch.__version__
    rows["pytorch.cuda"] = "available" if torch.cuda.is_available() else "not available"
    rows.update({f"build.{key}": str(value) for key, value in _build_info().items()})
    print(f"xFormers {__version__}")
    for name, status in rows.items():
        print(f"{name + ':':<50} {status}")


if __name__ == "__main__":
    print_info()
