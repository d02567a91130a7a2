"""Changes around torch.compile and activation checkpointing, release by release."""

import functools

import pytest
import torch
import torch._dynamo
from attention_inputs import qkv, random
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def assert_compiles(fn, inputs):
    """fullgraph, static shapes: outputs and gradients as in eager mode."""
    compiled = torch.compile(fn, fullgraph=True, dynamic=False, backend="aot_eager")
    leaves = [x for x in inputs if x.requires_grad]
    runs = []
    for run in (compiled, fn):
        out = run(*inputs)
        runs.append([out, *torch.autograd.grad(out.sum(), leaves)] if leaves else [out])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


OPS = {"None": None, "flash": (fmha.flash.FwOp, fmha.flash.BwOp), "cutlass": (fmha.cutlass.FwOp, fmha.cutlass.BwOp)}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_no_bias(op):
    """0.0.26: attention without a bias compiles."""
    assert_compiles(lambda q, k, v: memory_efficient_attention(q, k, v, op=op), _inputs())


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_causal(op):
    """0.0.27: so does LowerTriangularMask, from outside and made inside the compiled function."""
    mask = ab.LowerTriangularMask()
    assert_compiles(lambda q, k, v: memory_efficient_attention(q, k, v, mask, op=op), _inputs())
    assert_compiles(lambda q, k, v: memory_efficient_attention(q, k, v, ab.LowerTriangularMask(), op=op), _inputs())


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(causal, op):
    """0.0.27: so does BlockDiagonalMask, made outside."""
    mask = ab.BlockDiagonalMask.from_seqlens([3, 6])
    mask = mask.make_causal() if causal else mask
    assert_compiles(lambda q, k, v: memory_efficient_attention(q, k, v, mask, op=op), _inputs(batch=1))


def test_causal_with_a_tensor():
    """0.0.27: so does LowerTriangularMaskWithTensorBias; better: with gradients, and the bias's too."""
    bias = random((2, 3, 9, 9), torch.float16, seed=4)

    def attend(q, k, v, b):
        return memory_efficient_attention(q, k, v, ab.LowerTriangularMask().add_bias(b))

    assert_compiles(attend, [*(x.detach() for x in _inputs()), bias])
    assert_compiles(attend, [*_inputs(), bias.requires_grad_()])


def _inputs(batch=2):
    return qkv(batch=batch, nq=9, nk=9, head_dim=32, dtype=torch.float16)


FORWARD_OPS = {
    "attention_forward": lambda: torch.ops.xformers.attention_forward.default,
    "flash": lambda: torch.ops.xformers_flash.flash_fwd.default,
    "cutlass": lambda: torch.ops.xformers.efficient_attention_forward_cutlass.default,
}


def test_operators_that_policies_name():
    """0.0.24: the forward operators that checkpoint policies list by name exist."""
    assert [op().name() for op in FORWARD_OPS.values()] == [
        "xformers::attention_forward",
        "xformers_flash::flash_fwd",
        "xformers::efficient_attention_forward_cutlass",
    ]


@pytest.mark.parametrize("compiled", [False, True])
def test_selective_checkpointing(compiled):
    """0.0.24: a policy may keep the result of attention, in eager mode and compiled, with the same gradients."""
    keep = {op() for op in FORWARD_OPS.values()}
    calls = []

    def policy(ctx, op, *args, **kwargs):
        if op in keep:
            calls.append((op, ctx.is_recompute))
        return CheckpointPolicy.MUST_SAVE if op in keep else CheckpointPolicy.PREFER_RECOMPUTE

    def block(q, k, v):
        return memory_efficient_attention(q * 2, k, v, ab.LowerTriangularMask()).relu()

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def checkpointed(q, k, v):
        return checkpoint(block, q, k, v, use_reentrant=False, context_fn=contexts)

    run = torch.compile(checkpointed, fullgraph=True, backend="aot_eager") if compiled else checkpointed
    inputs = qkv()
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    got = torch.autograd.grad(run(*inputs).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert calls, "the policy never saw attention's forward"


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_activation_checkpointing(op, use_reentrant):
    """0.0.22: activation checkpointing in both forms, with dropout's mask repeated."""

    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, p=0.3, op=op)

    inputs = _inputs()
    runs = []
    for fn in (attend, lambda *x: checkpoint(attend, *x, use_reentrant=use_reentrant)):
        torch.manual_seed(5)
        out = fn(*inputs)
        runs.append([out, *torch.autograd.grad(out.sum(), inputs)] if not use_reentrant else _by_backward(out, inputs))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def _by_backward(out, inputs):
    for x in inputs:
        x.grad = None
    out.sum().backward()
    return [out, *(x.grad.clone() for x in inputs)]
