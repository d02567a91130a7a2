"""Names and identity of the package, as programs ask for them."""

import importlib
import importlib.metadata
import importlib.util
import inspect

import pytest
import torch

import xformers
import xformers.ops
from xformers.ops import fmha

BOTH = """memory_efficient_attention memory_efficient_attention_forward memory_efficient_attention_forward_requires_grad
memory_efficient_attention_backward memory_efficient_attention_partial merge_attentions AttentionBias AttentionOp
AttentionOpBase LowerTriangularMask MemoryEfficientAttentionCutlassOp MemoryEfficientAttentionCutlassFwdFlashBwOp
MemoryEfficientAttentionFlashAttentionOp MemoryEfficientAttentionCkOp MemoryEfficientAttentionSplitKCkOp""".split()
FMHA = """Inputs Context Gradients AttentionFwOpBase AttentionBwOpBase bmk2bmhk ALL_FW_OPS ALL_BW_OPS _get_use_fa3
_set_use_fa3 MemoryEfficientAttentionCkDecoderOp _memory_efficient_attention_forward
_memory_efficient_attention_forward_requires_grad _memory_efficient_attention_backward VARLEN_BIASES""".split()
MODULES = "attn_bias ck ck_decoder ck_splitk common cutlass dispatch flash flash3 generic triton_splitk".split()
OPS = "unbind stack_or_none get_stack_strides masked_matmul fmha".split()
GONE = """small_k decoder triton TritonFlashAttentionOp MemoryEfficientAttentionTritonFwdFlashBwOp AttentionOpDispatch
attn_operator_flop""".split()


def test_sum_strided_is_gone():
    """0.0.23."""
    import xformers.triton

    assert not hasattr(xformers.triton, "sum_strided") and not hasattr(torch.ops.xformers, "sum_strided")
    assert importlib.util.find_spec("xformers.triton.sum_strided") is None


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


@pytest.mark.parametrize("name", BOTH)
def test_names_in_both(name):
    assert getattr(xformers.ops, name) is getattr(fmha, name)


def test_names_in_one():
    assert xformers.ops.AttentionMask is xformers.ops.AttentionBias and not hasattr(fmha, "AttentionMask")
    assert all(hasattr(fmha, name) for name in FMHA)
    assert all(hasattr(xformers.ops, name) for name in OPS)
    for module in (fmha, xformers.ops):
        assert all(hasattr(module, name) for name in module.__all__)
    for name in ("Inputs", "Context", "Gradients", "AttentionFwOpBase", "AttentionBwOpBase", "AttentionOpBase"):
        assert getattr(fmha.common, name) is getattr(fmha, name)
    assert fmha.common.bmk2bmhk is fmha.bmk2bmhk


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module = importlib.import_module(f"xformers.ops.fmha.{name}")
    assert getattr(fmha, name) is module
    if name not in ("attn_bias", "common", "dispatch"):
        assert issubclass(module.FwOp, fmha.AttentionFwOpBase)


def test_pairs_of_operators():
    assert fmha.MemoryEfficientAttentionCutlassOp == (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
    assert fmha.MemoryEfficientAttentionCutlassFwdFlashBwOp == (fmha.cutlass.FwOp, fmha.flash.BwOp)
    assert fmha.MemoryEfficientAttentionFlashAttentionOp == (fmha.flash.FwOp, fmha.flash.BwOp)
    assert fmha.MemoryEfficientAttentionCkOp == (fmha.ck.FwOp, fmha.ck.BwOp)
    assert fmha.MemoryEfficientAttentionSplitKCkOp == (fmha.ck_splitk.FwOp, fmha.ck.BwOp)
    assert fmha.MemoryEfficientAttentionCkDecoderOp == (fmha.ck_decoder.FwOp, fmha.ck.BwOp)


@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_stays_away(name):
    assert not hasattr(fmha, name) and not hasattr(xformers.ops, name)
    assert not any(hasattr(op, name) for op in (*fmha.ALL_FW_OPS, *fmha.ALL_BW_OPS))
    with pytest.raises(ImportError):
        importlib.import_module(f"xformers.ops.fmha.{name}")


@pytest.mark.parametrize("name", [name for name in fmha.attn_bias.__all__ if not name.startswith("_")])
def test_biases_by_their_short_address(name):
    assert getattr(fmha, name) is getattr(fmha.attn_bias, name)


COMMON = ["query", "key", "value", "attn_bias", "p", "scale"]
MODIFIERS = ["softcap", "alibi_slopes", "sinks"]


@pytest.mark.parametrize(
    "name, positional, keywords",
    [
        ("memory_efficient_attention", COMMON, ["op", "output_dtype", *MODIFIERS]),
        ("memory_efficient_attention_forward", COMMON, ["op", "output_dtype", *MODIFIERS]),
        ("memory_efficient_attention_forward_requires_grad", COMMON, ["op", "output_dtype", *MODIFIERS]),
        ("memory_efficient_attention_partial", COMMON, ["op", "output_dtype", *MODIFIERS]),
        ("memory_efficient_attention_backward", ["grad", "output", "lse", *COMMON], ["op", *MODIFIERS]),
        ("merge_attentions", ["attn_split", "lse_split", "write_lse", "output_dtype"], []),
    ],
)
def test_signature(name, positional, keywords):
    parameters = inspect.signature(getattr(fmha, name)).parameters
    assert list(parameters) == positional + keywords
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in keywords)
    if "p" in parameters:
        assert parameters["p"].default == 0.0 and parameters["attn_bias"].default is None


def test_no_choice_is_a_choice():
    x = torch.randn(1, 2, 1, 4)
    expected = fmha.memory_efficient_attention(x, x, x)
    assert torch.equal(fmha.memory_efficient_attention(x, x, x, op=(None, None), output_dtype=x.dtype), expected)


def test_masked_matmul():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(xformers.ops.masked_matmul(a, b), a @ b)
    keep = torch.randn(3, 5) > 0
    assert torch.equal(xformers.ops.masked_matmul(a, b, keep), (a @ b).masked_fill(~keep, -torch.inf))
    added = torch.randn(3, 5)
    assert torch.equal(xformers.ops.masked_matmul(a, b, added), a @ b + added)

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func.__name__

    assert xformers.ops.masked_matmul(a, b, keep.as_subclass(Own)) == "masked_matmul"


def test_kernel_that_ran_is_named():
    x = torch.randn(1, 2, 1, 4, requires_grad=True)
    fmha.memory_efficient_attention(x, x, x).sum().backward()
    ops = torch.ops.xformers
    assert ops.last_attention_kernel() in ops.attention_kernels()
    assert ops.last_attention_kernel(True) in ops.attention_kernels(True)


def test_small_names_of_the_package():
    assert xformers.logger.name == "xformers" and not xformers.logger.handlers
    calls = []
    once = xformers.compute_once(lambda: calls.append(1) or 7)
    assert (once(), once(), calls) == (7, 7, [1])
