"""torch.compile(fullgraph=True) with every bias class, built outside or inside, and with named operators."""

import pytest
import torch
import torch._dynamo
from attention_inputs import qkv, random
from attn_bias_cases import CASES
from torch._dynamo.testing import CompileCounterWithBackend
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalMask,
    LowerTriangularMask,
    LowerTriangularMaskWithTensorBias,
    PagedBlockDiagonalPaddedKeysMask,
)

from xformers.ops import fmha, memory_efficient_attention, unbind

BIASES = {name: case for name, case in CASES.items() if "," not in name}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def inputs_of(case, **options):
    batch = 1 if hasattr(case.build(), "q_seqinfo") else 2
    return qkv(batch, case.queries, case.columns, **options)


def results(fn, inputs, *extra):
    out = fn(*inputs, *extra)
    leaves = [x for x in (*inputs, *extra) if isinstance(x, torch.Tensor) and x.requires_grad]
    return out, *torch.autograd.grad(out.square().sum(), leaves)


def assert_same(compiled, eager, inputs, *extra):
    for got, expected in zip(results(compiled, inputs, *extra), results(eager, inputs, *extra), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_as_an_argument(name, dynamic):
    def attend(q, k, v, bias):
        return memory_efficient_attention(q * 2, k, v, bias) + 1

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_same(compiled, attend, inputs_of(BIASES[name]), BIASES[name].build())


@pytest.mark.parametrize("name", BIASES)
def test_from_the_scope_around(name):
    bias = BIASES[name].build()

    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, bias)

    assert_same(torch.compile(attend, fullgraph=True, backend="aot_eager"), attend, inputs_of(BIASES[name]))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["LowerTriangularMask", "BlockDiagonalMask", "PagedBlockDiagonalGappyKeysMask"])
def test_inductor(name, dynamic):
    def attend(q, k, v, bias):
        return memory_efficient_attention(q, k, v, bias)

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic)
    assert_same(compiled, attend, inputs_of(BIASES[name]), BIASES[name].build())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_causal_with_tensor_bias(inside, dynamic, backend):
    tensor = random((2, 3, 5, 7), seed=3, requires_grad=True)

    def attend(q, k, v, bias):
        if not isinstance(bias, LowerTriangularMask):
            bias = LowerTriangularMask().add_bias(bias)
        return memory_efficient_attention(q, k, v, bias)

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=backend)
    inputs = qkv()
    got, expected = (
        torch.autograd.grad(
            fn(*inputs, tensor if inside else LowerTriangularMaskWithTensorBias(tensor)).square().sum(),
            [*inputs, tensor],
        )
        for fn in (compiled, attend)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", [None, fmha.MemoryEfficientAttentionCutlassOp], ids=["any", "cutlass"])
@pytest.mark.parametrize("heads", [(), (3,)], ids=["3d", "4d"])
def test_causal_built_inside(heads, op, dynamic):
    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, LowerTriangularMask(), op=op)

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_same(compiled, attend, qkv(heads=heads))


VARYING = {
    "packed": lambda n: BlockDiagonalMask.from_seqlens([n] * 3),
    "window": lambda n: BlockDiagonalMask.from_seqlens([n] * 3).make_local_attention_from_bottomright(2),
    "padded": lambda n: BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([n] * 3, 8 * n, [5 * n, 7, 8 * n]),
    "gappy": lambda n: BlockDiagonalGappyKeysMask.from_seqlens([n] * 3, [n, 9, 0, 24 * n], [5 * n, 7, 8 * n]),
    "paged": lambda n: PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        [n] * 3, [5 * n, 7, 8 * n], torch.arange(3 * 4 * n, dtype=torch.int32).view(3, -1), 2
    ),
}


@pytest.mark.parametrize("name", VARYING)
def test_other_lengths_do_not_compile_again(name):
    counter = CompileCounterWithBackend("aot_eager")

    def attend(q, k, v, bias):
        return memory_efficient_attention(q, k, v, bias)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    for n in (2, 5, 6, 7, 9):
        bias = VARYING[name](n)
        keys = 3 * n if name in ("packed", "window") else 24 * n
        inputs = qkv(1, 3 * n, keys, (4,), requires_grad=False)
        assert torch.equal(compiled(*inputs, bias), attend(*inputs, bias))
        if n == 5:
            compiled_by_now = counter.frame_count
    assert counter.frame_count == compiled_by_now <= 2


def test_lengths_edited_on_the_device_do_not_compile_again():
    counter = CompileCounterWithBackend("aot_eager")
    bias = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 8, [1, 2])

    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, bias)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    inputs = qkv(1, 2, 16, requires_grad=False)
    for _ in range(5):
        assert torch.equal(compiled(*inputs), attend(*inputs))
        bias.k_seqinfo.seqlen += 1
    assert counter.frame_count == 1


OPS = {
    "flash": fmha.MemoryEfficientAttentionFlashAttentionOp,
    "cutlass": fmha.MemoryEfficientAttentionCutlassOp,
    "mixed": fmha.MemoryEfficientAttentionCutlassFwdFlashBwOp,
    "forward alone": (fmha.flash.FwOp, None),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("bias", [None, LowerTriangularMask(), BlockDiagonalMask.from_seqlens([8])], ids=repr)
def test_named_operators(name, bias, dynamic):
    def attend(q, k, v):
        return memory_efficient_attention(q, k, v, bias, op=OPS[name])

    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert_same(compiled, attend, qkv(1, 8, 8, head_dim=16, dtype=torch.bfloat16))


def test_named_operators_refuse_under_compile():
    query, key, value = qkv()  # fp32
    compiled = torch.compile(memory_efficient_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="query.dtype is fp32, expected fp16 or bf16"):
        compiled(query, key, value, op=OPS["flash"])


def test_other_entry_points():
    def run(q, k, v):
        out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v)
        first, first_lse = fmha.memory_efficient_attention_partial(q, k[:, :3], v[:, :3])
        second, second_lse = fmha.memory_efficient_attention_partial(q, k[:, 3:], v[:, 3:])
        merged, merged_lse = fmha.merge_attentions([first, second], [first_lse, second_lse])
        return (
            out,
            lse,
            merged,
            merged_lse,
            fmha.memory_efficient_attention_forward(q, k, v, output_dtype=torch.float64),
        )

    inputs = qkv()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    for got, expected in zip(compiled, run(*inputs), strict=True):
        assert torch.equal(got, expected) and got.dtype == expected.dtype
    got = torch.autograd.grad(compiled[2].square().sum(), inputs)
    expected = torch.autograd.grad(run(*inputs)[2].square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_unbind_under_compile():
    def attend(x):
        return memory_efficient_attention(*unbind(x, 2), LowerTriangularMask())

    packed = random((2, 5, 3, 2, 8), requires_grad=True)
    assert_same(torch.compile(attend, fullgraph=True, backend="aot_eager"), attend, [packed])
