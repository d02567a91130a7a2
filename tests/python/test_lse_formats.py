"""Forms of an LSE: to each, back from each, and what is refused."""

import pytest
import torch
from attention_inputs import random
from torch.library import opcheck

to_format = torch.ops.xformers.lse_to_format
from_format = torch.ops.xformers.lse_from_format
lse_format = torch.ops.xformers.lse_format
HEADS = {"4d": (3,), "5d": (2, 3)}
SEQLENS = [2, 0, 40, 5]


def query(batch, seqlen, heads, dtype=torch.float32):
    return torch.zeros(batch, seqlen, *heads, 8, dtype=dtype)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("seqlen", [0, 1, 5, 32, 33])
def test_batches(heads, seqlen):
    lse = random((2, *heads, seqlen))
    assert to_format(lse, "packed") is lse or torch.equal(to_format(lse, "packed"), lse)
    assert torch.equal(to_format(lse, "padded"), lse)
    padded = to_format(lse, "cutlass")
    assert padded.shape == (2, *heads, (seqlen + 31) // 32 * 32)
    assert torch.equal(padded[..., :seqlen], lse) and (padded[..., seqlen:] == torch.inf).all()
    for given in (lse, padded):
        assert torch.equal(from_format(given, query(2, seqlen, heads)), lse)
        assert lse_format(given, query(2, seqlen, heads)) == "any"


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("seqlens", [SEQLENS, [7], [3, 3], [0, 0], [1] * 5], ids=str)
def test_packed_sequences(heads, seqlens):
    total, n, longest = sum(seqlens), len(seqlens), max(seqlens)
    lse, q = random((1, *heads, total)), query(1, total, heads)
    widths = {"padded": longest, "cutlass": (longest + 31) // 32 * 32}
    for name, width in widths.items():
        padded = to_format(lse, name, seqlens)
        assert padded.shape == (n, *heads, width) and padded.is_contiguous()
        begin = 0
        for b, seqlen in enumerate(seqlens):
            assert torch.equal(padded[b, ..., :seqlen], lse[0, ..., begin : begin + seqlen])
            assert (padded[b, ..., seqlen:] == torch.inf).all()
            begin += seqlen
        assert torch.equal(from_format(padded, q, seqlens), lse)
        ambiguous = n == 1 or width >= total and n == 1
        assert lse_format(padded, q, seqlens) == ("any" if ambiguous else "padded")
    assert torch.equal(to_format(lse, "packed", seqlens), lse)
    assert torch.equal(from_format(lse, q, seqlens), lse)
    longer = torch.cat([lse, torch.full((1, *heads, 3), torch.inf)], -1)  # a last dimension may be longer
    assert torch.equal(from_format(longer, q, seqlens), lse)
    assert lse_format(lse, q, seqlens) == ("any" if n == 1 else "packed")


def test_one_head_per_batch_row():
    lse = random((2, 1, 5))
    assert torch.equal(from_format(to_format(lse, "cutlass"), torch.zeros(2, 5, 8)), lse)


def test_dtypes():
    lse = random((2, 3, 5))
    wide = to_format(lse, "cutlass", dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(from_format(wide, query(2, 5, (3,))), lse)
    assert from_format(wide, query(2, 5, (3,), torch.float64)).dtype == torch.float64
    assert from_format(lse, query(2, 5, (3,), torch.bfloat16)).dtype == torch.float32
    packed = random((1, 3, 47))
    there = to_format(packed, "padded", SEQLENS, dtype=torch.float64)
    assert torch.equal(from_format(there, query(1, 47, (3,)), SEQLENS), packed)


@pytest.mark.parametrize("name", ["packed", "padded", "cutlass"])
@pytest.mark.parametrize("seqlens", [[], SEQLENS], ids=["batches", "packed"])
def test_gradients_flow_through(name, seqlens):
    shape = (1, 2, 47) if seqlens else (2, 2, 5)
    lse = random(shape, torch.float64, requires_grad=True)
    q = query(shape[0], shape[-1], (2,), torch.float64)
    assert torch.autograd.gradcheck(lambda x: from_format(to_format(x, name, seqlens), q, seqlens), (lse,))
    padded = to_format(lse, name, seqlens)
    (grad,) = torch.autograd.grad(padded.where(padded.isfinite(), 0.0).sum(), lse)
    assert torch.equal(grad, torch.ones_like(lse))


def test_attention_takes_what_comes_back():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, sum(SEQLENS), 3, 8) for _ in range(3))
    offsets = torch.tensor([0, 2, 2, 42, 47], dtype=torch.int32)
    layout = dict(cu_seqlens_q=offsets, cu_seqlens_k=offsets)
    out, lse, _ = torch.ops.xformers.attention_forward(q, k, v, **layout, need_lse=True)
    want = torch.ops.xformers.attention_backward(out, q, k, v, out, lse, **layout)
    for name in ("packed", "padded", "cutlass"):
        back = from_format(to_format(lse, name, SEQLENS), q, SEQLENS)
        got = torch.ops.xformers.attention_backward(out, q, k, v, out, back, **layout)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "shape, seqlens",
    [
        ((2, 3, 4), []),  # too few rows
        ((3, 3, 5), []),  # another batch
        ((2, 2, 5), []),  # other heads
        ((2, 5), []),  # too few dimensions
        ((2, 1, 3, 5), []),
        ((2, 3, 1), [2, 1]),  # neither packed nor padded
        ((3, 3, 3), [2, 3]),
    ],
)
def test_wrong_shapes(shape, seqlens):
    q = query(1, sum(seqlens), (3,)) if seqlens else query(2, 5, (3,))
    for operator in (from_format, lse_format):
        with pytest.raises(ValueError) as error:
            operator(torch.zeros(shape), q, seqlens, "SomeMask")
        for part in (str(list(shape)), str(list(q.shape)), "SomeMask"):
            assert part in str(error.value)


def test_other_errors():
    with pytest.raises(ValueError, match="format is other, expected packed, padded or cutlass"):
        to_format(torch.zeros(2, 3, 5), "other")
    with pytest.raises(ValueError, match=r"the packed lse is \[2, 3, 5\].*expected \[1, heads, 5\]"):
        to_format(torch.zeros(2, 3, 5), "padded", [2, 3])
    with pytest.raises(ValueError, match="the sum of the sequence lengths is 5, expected 6"):
        from_format(torch.zeros(2, 3, 3), query(1, 6, (3,)), [2, 3])


def test_opcheck():
    for requires_grad in (False, True):
        for name in ("padded", "cutlass"):
            opcheck(to_format.default, (random((1, 3, 47), requires_grad=requires_grad), name, SEQLENS))
        opcheck(from_format.default, (random((4, 3, 64), requires_grad=requires_grad), query(1, 47, (3,)), SEQLENS))


def test_compile():
    lse, q = random((1, 3, 47)), query(1, 47, (3,))

    def there_and_back(x):
        return from_format(to_format(x, "cutlass", SEQLENS) + 1, q, SEQLENS) - 1

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(lse), there_and_back(lse))
