"""Changes of what is computed: infinities, long sequences, repetition, dropout; release by release."""

import pytest
import torch
from attention_inputs import qkv, random
from attention_problems import Problem, Sequence, full
from attention_reference import check_attention
from dropout_stream import kept_weights
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

CUTLASS = (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
FLASH = (fmha.flash.FwOp, fmha.flash.BwOp)


@pytest.mark.parametrize("op", [None, CUTLASS], ids=["None", "cutlass"])
@pytest.mark.parametrize("bias", [None, ab.LowerTriangularMask()], ids=["full", "causal"])
def test_repetition(bias, op):
    """0.0.21: 100 repetitions give the same bits, forward and backward."""
    inputs = qkv(batch=1, nq=65, nk=65, heads=(2,), head_dim=32, dtype=torch.float16)
    first = None
    for _ in range(100):
        out = memory_efficient_attention(*inputs, bias, op=op)
        results = [out, *torch.autograd.grad(out.sum(), inputs)]
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(results, first, strict=True))


def test_one_head_with_many_keys():
    """0.0.20: backward of one batch row and head over 8192 keys, which is split over the keys."""
    check_attention(memory_efficient_attention, *qkv(batch=1, nq=16, nk=8192, heads=(1,), head_dim=16))


@pytest.mark.parametrize("op", [None, CUTLASS], ids=["None", "cutlass"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_prefixes_of_minus_infinity(dtype, op):
    """0.0.19: a tensor bias whose rows begin with -inf, of any number, forward and backward."""
    prefixes = [1, 31, 32, 64, 65, 127]
    inputs = qkv(batch=1, nq=len(prefixes), nk=150, heads=(2,), head_dim=16, dtype=dtype)
    bias = random((1, 2, len(prefixes), 150), dtype, seed=8)
    for row, prefix in enumerate(prefixes):
        bias[:, :, row, :prefix] = -torch.inf
    check_attention(
        lambda q, k, v, b: memory_efficient_attention(q, k, v, b, op=op), *inputs, tensor_bias=bias.requires_grad_()
    )


@pytest.mark.parametrize("nq, nk", [(32769, 3), (3, 32769)])
def test_more_than_2_to_the_15(nq, nk):
    """0.0.19: more than 2^15 queries or keys."""
    check_attention(memory_efficient_attention, *qkv(batch=1, nq=nq, nk=nk, heads=(2,), head_dim=8))


@pytest.mark.parametrize("op", [None, CUTLASS], ids=["None", "cutlass"])
def test_determinism(op):
    """0.0.19: cutlass twice, in deterministic mode: the same bits, forward and backward."""
    inputs = qkv(batch=1, nq=40, nk=300, heads=(1,), head_dim=16)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            out = memory_efficient_attention(*inputs, op=op)
            runs.append([out, *torch.autograd.grad(out.sum(), inputs)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def problem_of(bias, batch, nq, nk):
    """The sequences of a bias, for the mask of dropout."""
    if bias is None:
        return Problem(batch, nq, nk, [Sequence(b, 0, nq, list(range(nk))) for b in range(batch)], full)
    ranges = zip(bias.q_seqinfo.intervals(), bias.k_seqinfo.intervals(), strict=True)
    return Problem(1, nq, nk, [Sequence(0, q0, q1 - q0, list(range(k0, k1))) for (q0, q1), (k0, k1) in ranges], full)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("p", [0.3, 0.7])
@pytest.mark.parametrize("op", [None, CUTLASS, FLASH], ids=["None", "cutlass", "flash"])
def test_backward_with_dropout(op, p, packed):
    """0.0.19: gradients under dropout, against the mask computed by its rule; packed sequences too."""
    bias = ab.BlockDiagonalMask.from_seqlens([9, 20, 4]) if packed else None
    batch, nq, nk = (1, 33, 33) if packed else (2, 33, 47)
    inputs = qkv(batch=batch, nq=nq, nk=nk, head_dim=32, dtype=torch.float16)
    torch.manual_seed(12)
    kept = kept_weights(problem_of(bias, batch, nq, nk), 3, p, torch.ops.xformers.draw_philox_state())

    def attend(q, k, v, _):
        torch.manual_seed(12)
        return memory_efficient_attention(q, k, v, bias, p, op=op)

    seen = bias.materialize((nq, nk)) if packed else None
    check_attention(attend, *inputs, bias=seen, kept=kept, p=p)


@pytest.mark.parametrize("op", [None, CUTLASS], ids=["None", "cutlass"])
@pytest.mark.parametrize("p", [0.3, 0.7])
def test_rate_of_dropout(p, op):
    """0.0.17: every weight is kept with probability 1 - p, reproducibly by seed."""
    nq, nk, draws = 8, 24, 400
    query, key = (torch.zeros(draws, n, 1, 4) for n in (nq, nk))  # equal weights 1 / nk
    value = torch.eye(nk)[None, :, None].expand(draws, -1, -1, -1)
    torch.manual_seed(3)
    out = memory_efficient_attention(query, key, value, p=p, op=op)
    kept = out[:, :, 0] > 0
    torch.testing.assert_close(out[:, :, 0][kept], torch.full_like(out[:, :, 0][kept], 1 / nk / (1 - p)))
    deviation = (p * (1 - p) / draws) ** 0.5
    assert (kept.double().mean(0) - (1 - p)).abs().max() < 5 * deviation  # per position
    assert abs(kept.double().mean() - (1 - p)) < 5 * deviation / (nq * nk) ** 0.5
    torch.manual_seed(3)
    assert torch.equal(out, memory_efficient_attention(query, key, value, p=p, op=op))
    by_rule = kept_weights(problem_of(None, draws, nq, nk), 1, p, _state_after(3))
    assert torch.equal(kept, by_rule[:, 0])


def _state_after(seed):
    torch.manual_seed(seed)
    return torch.ops.xformers.draw_philox_state()


def test_dropout_needs_its_own_backward():
    """0.0.19: a forward with dropout runs its own backward; another one is refused by name."""
    inputs = qkv(head_dim=32, dtype=torch.float16)
    for op in ((CUTLASS[0], FLASH[1]), (FLASH[0], CUTLASS[1])):
        with pytest.raises(ValueError) as error:
            memory_efficient_attention(*inputs, p=0.1, op=op)
        assert op[0].NAME in str(error.value) and op[1].NAME in str(error.value)
    for op in ((CUTLASS[0], None), (FLASH[0], None)):
        memory_efficient_attention(*inputs, p=0.1, op=op).sum().backward()
