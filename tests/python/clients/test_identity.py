"""What programs ask of the package before they use it: names, versions, flags."""

import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import xformers
from xformers.ops import memory_efficient_attention


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_version():
    """ComfyUI, Forge, unsloth, diffusers: one version, of three numbers, 0.1.0 or later."""
    import xformers.version

    assert xformers.__version__ == xformers.version.__version__
    parts = xformers.__version__.split(".")
    assert tuple(int(part) for part in parts[:2]) >= (0, 1) and parts[2][0].isdigit()
    assert not xformers.__version__.startswith("0.0.")
    try:
        installed = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed here, only built: tests/install installs the wheel and compares")
    assert installed == xformers.__version__


def test_compatibility_level_is_shown():
    """Bug reports of every client: `python -m xformers.info` shows the version and the level of compatibility."""
    report = subprocess.run([sys.executable, "-m", "xformers.info"], capture_output=True, text=True, check=True).stdout
    assert xformers.__version__ in report.splitlines()[0] and "0.0.28" in report


def test_flags():
    """ComfyUI, unsloth: the flags that they read at import."""
    assert xformers._has_cpp_library is True
    assert xformers._is_triton_available() in (True, False)
    assert xformers._cpp_lib._register_extensions() is None  # again: no error


def test_submodule_is_an_attribute():
    """diffusers: `import xformers` alone makes `xformers.ops` reachable."""
    code = "import xformers; print(xformers.ops.memory_efficient_attention.__name__)"
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "memory_efficient_attention"


def test_import_is_silent():
    """DINOv2 and many others: nothing is printed or warned at import."""
    result = python("import xformers, xformers.ops, xformers.ops.fmha")
    assert result.returncode == 0 and result.stdout == ""
    assert [line for line in result.stderr.splitlines() if "xformers" in line.lower()] == []


def test_failing_import_is_an_import_error(tmp_path):
    """DINOv2, generative-models: `try: import xformers except ImportError` must be enough."""
    package = Path(xformers.__file__).parent
    broken = tmp_path / "xformers"
    broken.mkdir()
    for entry in package.iterdir():
        if entry.suffix == ".py" or entry.name in ("ops", "checkpoint", "profiler"):
            (broken / entry.name).symlink_to(entry.resolve())
    (broken / "_build_info.json").write_text((package / "_build_info.json").read_text())
    code = "try:\n import xformers\nexcept ImportError as e:\n print('refused:', e)"
    result = python(code, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and result.stdout.startswith("refused: "), result.stderr


def test_unsupported_inputs_are_not_implemented():
    """ComfyUI's VAE: what no operator takes is a NotImplementedError, which it catches."""
    x = torch.zeros(1, 4, 2, 16, dtype=torch.complex64)
    with pytest.raises(NotImplementedError):
        memory_efficient_attention(x, x, x)


def test_one_import_statement():
    """DINOv2: all the names that it takes in one statement, or it does without the library."""
    from xformers.ops import fmha, memory_efficient_attention, unbind  # noqa: F401

    assert fmha.BlockDiagonalMask is fmha.attn_bias.BlockDiagonalMask


def test_no_warning_when_called():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.zeros(1, 4, 2, 16)
        memory_efficient_attention(x, x, x)


def test_build_record_is_json():
    """The wheel's record of what it was built with, which the report shows."""
    record = xformers._cpp_lib._build_info()
    assert record["torch_version"] and record["cpu_isa"] and json.dumps(record)
