"""What a failed call leaves behind: no tensors that stay alive, no second try, the error that was raised."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from xformers.ops.fmha import attn_bias as ab

import xformers.ops as xops
from xformers import triton
from xformers.ops import fmha

# name -> (what is called with x [1, 64, 2, 16], the error)
CALLS = {
    "probability": (lambda x: xops.memory_efficient_attention(x, x, x, p=2.0), ValueError),
    "head_dim": (lambda x: xops.memory_efficient_attention(x, x[..., :8], x), ValueError),
    "integers": (lambda x: xops.memory_efficient_attention(*[x.to(torch.int8)] * 3), NotImplementedError),
    "sparse": (lambda x: xops.memory_efficient_attention(*[x.detach().to_sparse()] * 3), NotImplementedError),
    "bias": (lambda x: xops.memory_efficient_attention(x, x, x, torch.zeros(3, 3)), ValueError),
    "type of the bias": (lambda x: xops.memory_efficient_attention(x, x, x, "causal"), ValueError),
    "type of the scale": (lambda x: xops.memory_efficient_attention(x, x, x, None, 0.0, "1"), RuntimeError),
    "packed": (
        lambda x: xops.memory_efficient_attention(x, x, x, ab.BlockDiagonalMask.from_seqlens([60])),
        ValueError,
    ),
    "forward": (lambda x: xops.memory_efficient_attention_forward(x, x[:, :, :1], x), ValueError),
    "forward and lse": (lambda x: xops.memory_efficient_attention_forward_requires_grad(x, x, x[:, :3]), ValueError),
    "dropout": (lambda x: xops.memory_efficient_attention_forward_requires_grad(x, x, x, p=0.5), NotImplementedError),
    "backward": (lambda x: xops.memory_efficient_attention_backward(x, x, x, x, x, x), ValueError),
    "partial": (lambda x: fmha.memory_efficient_attention_partial(x, x, x[..., :0]), ValueError),
    "named operator": (
        lambda x: xops.memory_efficient_attention(x, x, x, op=fmha.MemoryEfficientAttentionFlashAttentionOp),
        ValueError,
    ),
    "no operator": (lambda x: xops.memory_efficient_attention(x, x, x, op="flash"), ValueError),
    "merge": (lambda x: fmha.merge_attentions([x, x[:, :3]], [x[..., 0], x[..., 0]]), ValueError),
    "norm": (lambda x: xops.rms_norm(x, x[0, 0, 0, :3]), ValueError),
    "softmax": (lambda x: triton.softmax(x, x[..., :3]), ValueError),
    "swiglu": (lambda x: xops.swiglu(x, x[0, 0], None, x[0, 0, :1], None, x[0, 0], None), ValueError),
    "indexing": (lambda x: xops.index_select_cat([x[0, 0]], [torch.tensor([9])]), (ValueError, IndexError)),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_an_error_lets_go_of_its_inputs(name, requires_grad):
    call, error = CALLS[name]
    x = torch.randn(1, 64, 2, 16, requires_grad=requires_grad)
    alive = weakref.ref(x)
    gc.disable()  # what a cycle holds would wait for the collector
    try:
        try:
            call(x)
        except error:
            pass
        else:
            pytest.fail("no error")
        del x
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError, KeyboardInterrupt])
def test_a_call_that_fails_while_it_runs_is_not_tried_again(monkeypatch, error):
    def no_memory(*args, **options):
        raise error("no memory is left")

    monkeypatch.setattr(fmha._engine, "_forward", no_memory)
    monkeypatch.setattr(fmha.Inputs, "validate_inputs", lambda inp: pytest.fail("validated again"))
    x = torch.randn(1, 8, 2, 16)
    with pytest.raises(error, match="no memory is left") as raised:
        xops.memory_efficient_attention(x, x, x)
    assert raised.value.__context__ is None


def test_refusals_don_t_speak_of_another_error():
    x = torch.zeros(1, 8, 2, 16, dtype=torch.int8)
    with pytest.raises(NotImplementedError) as raised:
        xops.memory_efficient_attention(x, x, x)
    assert raised.value.__context__ is None and raised.value.__cause__ is None


def test_what_nobody_objects_to_is_raised_as_it_came(monkeypatch):
    def refuse(*args, **options):
        raise NotImplementedError("not on this device")

    monkeypatch.setattr(fmha._engine, "_forward", refuse)
    x = torch.randn(1, 8, 2, 16)
    with pytest.raises(NotImplementedError, match="^not on this device$"):
        xops.memory_efficient_attention(x, x, x)


def test_an_operator_of_one_s_own():
    class Mine(fmha.generic.FwOp):
        calls = 0

        @classmethod
        def run(cls, inp, need_lse):
            cls.calls += 1
            return super().run(inp, need_lse)

    class Apart(fmha.AttentionFwOpBase):
        NAME, _KEY = "apart", fmha.generic.FwOp._KEY

        @classmethod
        def apply(cls, inp, needs_gradient):
            return fmha.generic.FwOp.apply(inp, needs_gradient)

    x = torch.randn(1, 8, 2, 16)
    expected = xops.memory_efficient_attention(x, x, x)
    assert torch.equal(xops.memory_efficient_attention(x, x, x, op=(Mine, None)), expected) and Mine.calls == 1
    out, lse = xops.memory_efficient_attention_forward_requires_grad(x, x, x, op=Apart)
    assert torch.equal(out, expected) and lse.shape == (1, 2, 8)


OPTIMIZED = """
import torch, xformers.ops as xops
from xformers.ops.tiled_matmul import tiled_matmul_out
from xformers.triton import FusedDropoutBias
assert False  # so that it is sure that asserts are gone
x, one, both = torch.ones(3, 4), torch.ones(2, 2), torch.ones(2, 5, 4).unbind(0)
layer, rest = xops.SwiGLU(4, 5, _pack_weights=False), (torch.ones(3, 5), None)
bias = xops.fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1], 2, [1])
kv = torch.ones(1, 2, 1, 4)
calls = {
    "tiles": lambda: xops.tiled_matmul([], [[one]]),
    "row": lambda: xops.tiled_matmul([[one, one], [one]], [[one], [one]]),
    "shape": lambda: xops.tiled_matmul([[one]], [[x]]),
    "count": lambda: xops.tiled_matmul([[one]], [[one], [one]]),
    "dimensions": lambda: xops.tiled_matmul([[one[0]]], [[one]]),
    "out": lambda: tiled_matmul_out([[one]], [[one]], [[x]]),
    "swiglu": lambda: xops.swiglu(x, both[0], torch.ones(5), both[1], None, *rest, op=xops.SwiGLUPackedFusedOp),
    "packed": lambda: xops.swiglu_packed(x, torch.ones(2, 5, 4), None, *rest, op=xops.SwiGLUFusedOp),
    "unpacked": lambda: layer._packed_ordered_params(),
    "rope": lambda: xops.rope_padded(kv[:, :1], kv[:, :1], kv[:, :1], kv, kv, bias, internal_dtype="f16"),
    "p": lambda: FusedDropoutBias(1.0, None),
}
for name, call in calls.items():
    try:
        call()
    except AssertionError as error:
        if "expected" in str(error) and "Fix: " in str(error):
            continue
        raise RuntimeError(f"{name}: {error}")
    raise RuntimeError(f"{name}: nothing is raised")
"""


def test_errors_of_users_are_there_without_asserts():
    result = subprocess.run([sys.executable, "-O", "-c", OPTIMIZED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
