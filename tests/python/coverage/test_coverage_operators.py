"""Changes of the named operators: what each takes, which one runs, which may be combined; release by release."""

import subprocess
import sys

import pytest
import torch
from attention_inputs import qkv
from attention_reference import check_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

CUTLASS = (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
FLASH = (fmha.flash.FwOp, fmha.flash.BwOp)
MIXED = {"cutlass-flash": (CUTLASS[0], FLASH[1]), "flash-cutlass": (FLASH[0], CUTLASS[1])}


def packed(lengths, dtype=torch.float16, requires_grad=True):
    inputs = qkv(batch=1, nq=sum(lengths), nk=sum(lengths), head_dim=32, dtype=dtype, requires_grad=requires_grad)
    return inputs, ab.BlockDiagonalMask.from_seqlens(lengths)


@pytest.mark.parametrize("op", MIXED.values(), ids=MIXED)
def test_packed_lse_formats_do_not_mix(op):
    """0.0.28: cutlass and flash store the lse of packed sequences differently and are not combined there."""
    inputs, bias = packed([3, 4, 5])
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(*inputs, bias, op=op)
    assert op[0].NAME in str(error.value) and op[1].NAME in str(error.value) and "lse" in str(error.value).lower()


@pytest.mark.parametrize("op", MIXED.values(), ids=MIXED)
def test_other_lse_formats_mix(op):
    """0.0.28: one sequence, or none packed: the formats agree and any combination is right."""
    inputs, bias = packed([12])
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, bias, op=op), *inputs)
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, op=op), *qkv(head_dim=32, dtype=torch.float16)
    )


def test_backward_checks_the_format_of_the_lse():
    """0.0.28: the backward function refuses the lse of a forward of another format."""
    inputs, bias = packed([3, 4, 5], requires_grad=False)
    halves = fmha.memory_efficient_attention_forward_requires_grad, fmha.memory_efficient_attention_backward
    expected = None
    for forward, backward in ((FLASH[0], FLASH[1]), (CUTLASS[0], CUTLASS[1])):
        out, lse = halves[0](*inputs, bias, op=forward)
        got = halves[1](torch.ones_like(out), out, lse, *inputs, bias, op=backward)
        expected = expected or got
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
        other = CUTLASS[1] if backward is FLASH[1] else FLASH[1]
        with pytest.raises(ValueError):
            halves[1](torch.ones_like(out), out, lse, *inputs, bias, op=other)


def test_flash_version():
    """0.0.28, 0.0.22: the flash version that the contract follows is in its name and in the report."""
    assert fmha.flash.FLASH_VERSION.startswith("2.6.3") and fmha.flash.FwOp.VERSION == fmha.flash.FLASH_VERSION
    assert fmha.flash.FLASH_VERSION in fmha.flash.FwOp.NAME and fmha.flash.FLASH_VERSION in fmha.flash.BwOp.NAME
    report = subprocess.run([sys.executable, "-m", "xformers.info"], capture_output=True, text=True, check=True).stdout
    (row,) = [line for line in report.splitlines() if fmha.flash.FwOp.NAME in line]
    assert "memory_efficient_attention" in row and "available" in row


@pytest.mark.parametrize(
    "dtype, expected", [(torch.float16, FLASH), (torch.bfloat16, FLASH), (torch.float32, CUTLASS)], ids=str
)
def test_default_operators(dtype, expected):
    """0.0.21: flash where it takes the inputs, else cutlass, forward and backward."""
    query, key, value = qkv(head_dim=32, dtype=dtype, requires_grad=False)
    inp = fmha.Inputs(query, key, value)
    assert fmha.dispatch._dispatch_fw(inp, needs_gradient=True) is expected[0]
    assert fmha.dispatch._dispatch_bw(inp, varlen_lse_packed=None) is expected[1]


@pytest.mark.parametrize("head_dim", [32, 64, 72, 128, 256])
def test_backward_does_not_depend_on_head_dim(head_dim):
    """0.0.20, superseded: backward went to cutlass above 64; flash is asked first at any head_dim that it takes."""
    query, key, value = qkv(head_dim=head_dim, dtype=torch.float16, requires_grad=False)
    assert fmha.dispatch._dispatch_bw(fmha.Inputs(query, key, value)) is FLASH[1]


def test_cpu_tensors_are_taken():
    """0.0.22, better: upstream refuses CPU tensors since then; here every operator runs on them."""
    inputs = qkv(head_dim=32, dtype=torch.float16)
    for op in (None, CUTLASS, FLASH):
        check_attention(lambda q, k, v, _, op=op: memory_efficient_attention(q, k, v, op=op), *inputs)


def test_split_k_needs_capability_8():
    """0.0.24: on a GPU older than 8.0 split-K gives that as its reason."""
    ask = torch.ops.xformers.attention_not_supported_reasons
    with FakeTensorMode():  # describes CUDA tensors where there is no GPU
        query, key, value = (torch.empty(2, n, 3, 32, dtype=torch.float16, device="cuda") for n in (5, 7, 7))
        for capability, expected in (([7, 5], True), ([8, 0], False), ([9, 0], False)):
            reasons = ask("triton_splitKF", query, key, value, cuda_capability=capability)
            assert any("capability" in reason and "8.0" in reason for reason in reasons) == expected


def test_deterministic_backward():
    """0.0.22: in deterministic mode the gradients repeat bit by bit, and the explicit flash backward is refused."""
    torch.use_deterministic_algorithms(True)
    try:
        for bias in (None, ab.BlockDiagonalCausalMask.from_seqlens([5, 6, 22])):
            inputs = qkv(batch=1, nq=33, nk=33, head_dim=32, dtype=torch.float16)
            runs = [torch.autograd.grad(memory_efficient_attention(*inputs, bias).sum(), inputs) for _ in range(2)]
            assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        inputs = qkv(head_dim=32, dtype=torch.float16)
        with pytest.raises(ValueError, match="determinis"):
            memory_efficient_attention(*inputs, op=FLASH)
        check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, op=CUTLASS), *inputs)
    finally:
        torch.use_deterministic_algorithms(False)


FLASH_SHAPES = [(1, 1), (2, 4), (7, 11), (2, 1), (1, 4)]


@pytest.mark.parametrize("groups, heads", FLASH_SHAPES)
@pytest.mark.parametrize("backend", ["cutlass", "flash", "triton_splitk"])
def test_grouped_heads(backend, groups, heads):
    """0.0.22: grouped and multi-query attention through 5-D inputs, in every operator."""
    inputs = qkv(batch=1, nq=3, nk=40, heads=(groups, heads), head_dim=32, dtype=torch.bfloat16, requires_grad=False)
    inputs[1:] = [x[:, :, :, :1].expand(-1, -1, -1, heads, -1) for x in inputs[1:]]
    op = getattr(fmha, backend).FwOp
    check_attention(lambda q, k, v, _: fmha.memory_efficient_attention_forward(q, k, v, op=op), *inputs)


def test_grouped_heads_backward():
    """0.0.22, better: upstream refuses gradients of 5-D inputs; 4-D inputs with expanded heads have them there too."""
    grouped = qkv(batch=1, nq=3, nk=40, heads=(2, 3), head_dim=32, dtype=torch.bfloat16)
    check_attention(memory_efficient_attention, *grouped)
    query, key, value = qkv(batch=1, nq=3, nk=40, heads=(1,), head_dim=32, dtype=torch.bfloat16)
    query = qkv(batch=1, nq=3, heads=(6,), head_dim=32, dtype=torch.bfloat16)[0]
    key, value = (x.expand(-1, -1, 6, -1) for x in (key, value))
    for op in (None, CUTLASS, FLASH):
        check_attention(lambda q, k, v, _, op=op: memory_efficient_attention(q, k, v, op=op), query, key, value)


def test_grouped_heads_with_strides_that_do_not_collapse():
    """0.0.22: strides that flash cannot fold into one head dimension: ValueError there, no problem elsewhere."""
    query, key, value = qkv(batch=1, heads=(3, 2), head_dim=32, dtype=torch.float16, requires_grad=False)
    query = query.transpose(2, 3).contiguous().transpose(2, 3)  # groups run faster than heads
    with pytest.raises(ValueError):
        fmha.memory_efficient_attention_forward(query, key, value, op=fmha.flash.FwOp)
    check_attention(memory_efficient_attention, query, key, value)


@pytest.mark.parametrize("lengths", [(1, 65, 129), (65,), (1,)])
def test_lse_of_multi_query_heads(lengths):
    """0.0.23: cutlass' lse with expanded heads, query lengths one above a multiple of 64."""
    nq = sum(lengths)
    query, key, value = qkv(batch=1, nq=nq, nk=nq, heads=(1,), head_dim=32, requires_grad=False)
    query = qkv(batch=1, nq=nq, heads=(8,), head_dim=32, requires_grad=False)[0]
    key, value = (x.expand(-1, -1, 8, -1) for x in (key, value))
    bias = ab.BlockDiagonalMask.from_seqlens(list(lengths))
    _, lse = fmha.memory_efficient_attention_forward_requires_grad(query, key, value, bias, op=fmha.cutlass.FwOp)
    longest = max(lengths)
    assert lse.shape == (len(lengths), 8, -(-longest // 32) * 32) and lse.dtype == torch.float32
    scores = torch.einsum("qhd,khd->hqk", query[0].double(), key[0].double()) * 32**-0.5
    expected = (scores + bias.materialize((nq, nq)).double()).logsumexp(-1)
    first = 0
    for row, length in zip(lse, lengths, strict=True):
        torch.testing.assert_close(row[:, :length].double(), expected[:, first : first + length], atol=2e-4, rtol=0)
        assert (row[:, length:] == torch.inf).all()
        first += length


def test_lse_of_one_short_query_row():
    """0.0.23: the same for [1, 1, 32, 128] against 16 keys, with gradients."""
    query = qkv(batch=1, nq=1, heads=(32,), head_dim=128)[0]
    key, value = (x.expand(-1, -1, 32, -1) for x in qkv(batch=1, nk=16, heads=(1,), head_dim=128)[1:])
    for op in (None, CUTLASS):
        check_attention(lambda q, k, v, _, op=op: memory_efficient_attention(q, k, v, op=op), query, key, value)


def test_expanded_heads_are_not_copied():
    """0.0.25: multi-query attention reads expanded keys and values where they lie."""
    query = qkv(batch=1, nq=1, heads=(32,), head_dim=64, requires_grad=False)[0]
    key, value = (
        x.expand(-1, -1, 32, -1) for x in qkv(batch=1, nk=8192, heads=(1,), head_dim=64, requires_grad=False)[1:]
    )
    expanded_bytes = key.numel() * key.element_size()
    for op in (None, fmha.flash.FwOp, fmha.triton_splitk.FwOp):
        inputs = [x.half() if op is not None and x is query else x for x in (query, key, value)]
        if op is not None:
            inputs[1:] = [x[:, :, :1].half().expand(-1, -1, 32, -1) for x in (key, value)]
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as trace:
            fmha.memory_efficient_attention_forward(*inputs, op=op)
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in trace.key_averages())
        assert allocated < expanded_bytes / 8, f"{op}: {allocated} bytes allocated"


@pytest.mark.parametrize("backward", [False, True])
def test_flops(backward):
    """0.0.28: FLOPs of attention: causal counts what is visible, packed sequences each for themselves."""
    flops = torch.ops.xformers.attention_flops
    b, mq, mk, h, k, kv = 2, 40, 100, 3, 64, 32
    shapes = [[b, mq, h, k], [b, mk, h, k], [b, mk, h, kv]]
    factor = 2.5 if backward else 1
    assert flops(*shapes, backward=backward) == factor * b * h * 2 * mq * mk * (k + kv)
    d = mk - mq
    causal = b * h * (2 * mq * d * (k + kv) + mq * mq * (k + kv))
    assert flops(*shapes, causal=True, backward=backward) == factor * causal
    heads_first = [[s[0], s[2], s[1], s[3]] for s in shapes]
    assert flops(*heads_first, heads_first=True, backward=backward) == flops(*shapes, backward=backward)
    ends = torch.tensor([0, 10, 40], dtype=torch.int32)
    packed_shapes = [[1, 40, h, k]] * 2 + [[1, 40, h, kv]]
    each = sum(b_h * 2 * n * n * (k + kv) for b_h, n in ((h, 10), (h, 30)))
    assert flops(*packed_shapes, cu_seqlens_q=ends, cu_seqlens_k=ends, backward=backward) == factor * each


def test_flops_are_counted():
    """0.0.28: PyTorch's FLOP counter sees forward and backward of attention."""
    from torch.utils.flop_counter import FlopCounterMode

    inputs = qkv(batch=2, nq=40, nk=40, heads=(3,), head_dim=64)
    counts = []
    for bias in (None, ab.LowerTriangularMask()):
        with FlopCounterMode(display=False) as counter:
            out = memory_efficient_attention(*inputs, bias)
            forward = counter.get_total_flops()
            out.sum().backward()
        counts.append((forward, counter.get_total_flops() - forward))
    full = 2 * 3 * 2 * 40 * 40 * (64 + 64)
    assert counts[0] == (full, 2.5 * full) and counts[1] == (full / 2, 2.5 * full / 2)
