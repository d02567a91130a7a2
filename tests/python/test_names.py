"""Names and identity of the package, as programs ask for them."""

import importlib.metadata
import inspect

import pytest
import torch

import xformers
import xformers.ops
from xformers.ops import fmha


def test_version():
    import xformers.version

    assert xformers.__version__ == xformers.version.__version__
    assert tuple(int(part) for part in xformers.__version__.split(".")) >= (0, 1, 0)
    try:
        assert importlib.metadata.version("xformers") == xformers.__version__
    except importlib.metadata.PackageNotFoundError:
        pass  # the build tree's package, not an installed one; tests/install looks at the wheel


def test_flags():
    assert xformers._has_cpp_library is True
    assert xformers._is_triton_available() is False
    assert xformers._cpp_lib._register_extensions() is None


def test_names():
    for name in (
        "AttentionBias",
        "LowerTriangularMask",
        "memory_efficient_attention",
        "memory_efficient_attention_forward",
        "memory_efficient_attention_forward_requires_grad",
        "memory_efficient_attention_backward",
    ):
        assert getattr(xformers.ops, name) is getattr(fmha, name)
    assert xformers.ops.AttentionMask is xformers.ops.AttentionBias
    for name in fmha.__all__:
        assert hasattr(fmha, name)


@pytest.mark.parametrize("name", ["memory_efficient_attention", "memory_efficient_attention_forward"])
def test_signature(name):
    parameters = inspect.signature(getattr(fmha, name)).parameters
    assert list(parameters) == ["query", "key", "value", "attn_bias", "p", "scale", "op", "output_dtype"]
    assert parameters["p"].default == 0.0 and parameters["attn_bias"].default is None
    assert parameters["op"].kind is inspect.Parameter.KEYWORD_ONLY


def test_no_choice_is_a_choice():
    x = torch.randn(1, 2, 1, 4)
    expected = fmha.memory_efficient_attention(x, x, x)
    assert torch.equal(fmha.memory_efficient_attention(x, x, x, op=(None, None), output_dtype=x.dtype), expected)


def test_info(capsys):
    from xformers import info

    info.print_info()
    printed = capsys.readouterr().out
    assert printed.startswith(f"xFormers {xformers.__version__}\n")
    assert "xformers.attention_forward: " in printed and torch.__version__ in printed and "0.0.28" in printed
    assert ", ".join(torch.ops.xformers.cpu_isas()) in printed
    assert info.get_features_status()["xformers.attention_backward"] == "available"


def test_kernel_that_ran_is_named():
    x = torch.randn(1, 2, 1, 4, requires_grad=True)
    fmha.memory_efficient_attention(x, x, x).sum().backward()
    ops = torch.ops.xformers
    assert ops.last_attention_kernel() in ops.attention_kernels()
    assert ops.last_attention_kernel(True) in ops.attention_kernels(True)
