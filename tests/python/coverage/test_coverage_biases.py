"""Changes of the biases, release by release: new classes, devices, shapes and alignment of tensor biases."""

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention


def rows(mask):
    """A materialised mask as text, one string of 0s and 1s per query."""
    return ["".join("1" if x == 0 else "0" for x in row) for row in mask.reshape(-1, mask.shape[-1]).tolist()]


def check(bias, query, key, value, op=None):
    seen = bias.materialize((query.shape[1], key.shape[1]))
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, bias, op=op), query, key, value, bias=seen)


def test_paged_gappy_keys():
    """0.0.27: paged keys that begin anywhere: both ways to build them agree, with the mask and with unpaged keys."""
    table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
    cls = ab.PagedBlockDiagonalGappyKeysMask
    paged = cls.from_seqlens([1, 2], kv_seqstarts=[1, 3], kv_seqlen=[5, 4], block_tables=table, page_size=4)
    unpaged = ab.BlockDiagonalGappyKeysMask.from_seqlens([1, 2], kv_seqstarts=[1, 11, 16], kv_seqlen=[5, 4])
    made = unpaged.make_paged(table, 4, notional_padding=8, paged_type=cls)
    by_hand = ["1100" + "0000" + "0000" + "0111", *["0000" + "0001" + "1110" + "0000"] * 2]
    for bias in (paged, made):
        assert type(bias) is cls and rows(bias.materialize((3, 16))) == by_hand
    cache = [x.half() for x in qkv(batch=1, nq=3, nk=16, head_dim=32, requires_grad=False)]
    logical = [x[:, torch.cat([torch.arange(page * 4, page * 4 + 4) for page in table.flatten()])] for x in cache[1:]]
    split_k = fmha.triton_splitk.FwOp
    expected = fmha.memory_efficient_attention_forward(cache[0], *logical, unpaged, op=split_k)
    for bias in (paged, made):
        got = fmha.memory_efficient_attention_forward(*cache, bias)
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "build",
    [
        lambda device: ab.BlockDiagonalMask.from_seqlens([2, 3], device=device),
        lambda device: ab.BlockDiagonalCausalMask.from_seqlens([2, 3], device=device),
        lambda device: ab.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 4, [1, 4], device=device),
        lambda device: ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 4, [2, 4], device=device),
        lambda device: ab.BlockDiagonalGappyKeysMask.from_seqlens([2, 3], [0, 3, 8], [2, 4], device=device),
        lambda device: ab.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(
            [2, 3], [0, 3, 8], [2, 4], device=device
        ),
        lambda device: ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            [2, 3], [1, 4], torch.tensor([[0], [1]], dtype=torch.int32, device=device), 4, device=device
        ),
        lambda device: ab.PagedBlockDiagonalGappyKeysMask.from_seqlens(
            [2, 3], [0, 1], [1, 3], torch.tensor([[0], [1]], dtype=torch.int32, device=device), 4, device=device
        ),
    ],
)
def test_devices(build):
    """0.0.27: a device that is given must be that of the inputs; default: cuda where it exists."""
    inputs = qkv(batch=1, nq=5, nk=build("cpu").materialize((5, _keys(build("cpu")))).shape[-1], requires_grad=False)
    elsewhere = build("meta")
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(*inputs, elsewhere)
    assert "meta" in str(error.value) and "cpu" in str(error.value)
    default = build(None) if "Paged" not in type(elsewhere).__name__ else build("cpu")
    expected = "cuda" if torch.cuda.is_available() and "Paged" not in type(elsewhere).__name__ else "cpu"
    assert default.q_seqinfo.seqstart.device.type == expected
    assert build("cpu").k_seqinfo.seqstart.device.type == "cpu"
    assert memory_efficient_attention(*inputs, default).shape == inputs[0].shape


def _keys(bias):
    table = getattr(bias, "block_tables", None)
    return bias.k_seqinfo.seqstart_py[-1] if table is None else table.numel() * bias.page_size


def test_gappy_keys():
    """0.0.25: key ranges may overlap, stand in any order and leave gaps; counts are checked."""
    cls = ab.BlockDiagonalGappyKeysMask
    bias = cls.from_seqlens([1, 2, 1], kv_seqstarts=[4, 0, 3, 9], kv_seqlen=[4, 3, 2])
    assert rows(bias.materialize((4, 9))) == ["000011110", "111000000", "111000000", "000110000"]
    check(bias, *qkv(batch=1, nq=4, nk=9))
    for starts, lengths in (([4, 0, 9], [4, 3, 2]), ([4, 0, 3, 9, 9], [4, 3, 2]), ([0], [])):
        with pytest.raises(ValueError):
            cls.from_seqlens([1] * len(lengths), kv_seqstarts=starts, kv_seqlen=lengths)
    with pytest.raises(ValueError):
        cls.from_seqlens([1, 2], kv_seqstarts=[4, 0, 3, 9], kv_seqlen=[4, 3, 2])


def test_local_attention_from_bottom_right():
    """0.0.23: a window around the bottom-right diagonal."""
    mask = ab.LocalAttentionFromBottomRightMask(1, 2)
    assert rows(mask.materialize((4, 4))) == ["1110", "1111", "0111", "0011"]
    assert rows(mask.materialize((4, 5))) == ["11110", "01111", "00111", "00011"]
    for window in ((-1, 2), (1, -1)):
        with pytest.raises(ValueError):
            ab.LocalAttentionFromBottomRightMask(*window)
    flash = (fmha.flash.FwOp, fmha.flash.BwOp)
    check(mask, *qkv(nq=20, nk=31, head_dim=32, dtype=torch.float16), op=flash)


@pytest.mark.parametrize("nq, nk", [(5, 9), (9, 9)])
@pytest.mark.parametrize("backend", ["cutlass", "flash"])
def test_causal_from_bottom_right(backend, nq, nk):
    """0.0.23: causal from the bottom-right corner, in cutlass and flash, forward and backward."""
    op = (getattr(fmha, backend).FwOp, getattr(fmha, backend).BwOp)
    check(ab.LowerTriangularFromBottomRightMask(), *qkv(nq=nq, nk=nk, head_dim=32, dtype=torch.bfloat16), op=op)


def test_causal_window_from_bottom_right():
    """0.0.23: the same with a window; a window of nothing is refused."""
    mask = ab.LowerTriangularFromBottomRightMask().make_local_attention(2)
    assert type(mask) is ab.LowerTriangularFromBottomRightLocalAttentionMask
    assert rows(mask.materialize((3, 5))) == ["01100", "00110", "00011"]
    with pytest.raises(ValueError):
        ab.LowerTriangularFromBottomRightMask().make_local_attention(0)
    flash = (fmha.flash.FwOp, fmha.flash.BwOp)
    check(mask, *qkv(nq=20, nk=31, head_dim=32, dtype=torch.float16), op=flash)
    forward_only = qkv(nq=20, nk=31, head_dim=32, requires_grad=False)
    check(mask, *forward_only, op=(fmha.cutlass.FwOp, None))


def test_padded_keys_with_causal_offset_in_flash():
    """0.0.23: flash takes padded keys with a causal offset."""
    bias = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 1, 3], 16, [5, 1, 16])
    inputs = qkv(batch=1, nq=6, nk=48, head_dim=32, dtype=torch.float16, requires_grad=False)
    seen = bias.materialize((6, 48))
    check_attention(
        lambda q, k, v, _: fmha.memory_efficient_attention_forward(q, k, v, bias, op=fmha.flash.FwOp),
        *inputs,
        bias=seen,
    )


def test_local_attention_of_packed_sequences():
    """0.0.22: windows inside packed sequences; a window that leaves a query without keys is refused."""
    bias = ab.BlockDiagonalMask.from_seqlens([4, 6]).make_local_attention(2)
    expected = ["".join("1" if (i < 4) == (j < 4) and 0 <= i - j < 2 else "0" for j in range(10)) for i in range(10)]
    assert rows(bias.materialize((10, 10))) == expected
    with pytest.raises(RuntimeError):
        ab.BlockDiagonalMask.from_seqlens([5], [2]).make_local_attention(2)
    for window in (0, -1):
        with pytest.raises(ValueError):
            ab.BlockDiagonalMask.from_seqlens([4, 6]).make_local_attention(window)


def test_lower_triangular_mask_stays_compatible():
    """0.0.21: `LowerTriangularMask()` takes no argument and one object serves many calls."""
    mask = ab.LowerTriangularMask()

    def attend(query, key, value, bias=mask):
        return memory_efficient_attention(query, key, value, bias)

    for nq, nk in ((3, 3), (5, 9), (9, 5)):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = qkv(nq=nq, nk=nk, dtype=dtype)
            seen = mask.materialize((nq, nk))
            check_attention(lambda q, k, v, _: attend(q, k, v), *inputs, bias=seen)


@pytest.mark.parametrize(
    "shape", [(5, 7), (2, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7), (1, 1, 5, 7), (2, 3, 1, 7), (2, 3, 5, 1), (2, 1, 3, 5, 7)]
)
def test_tensor_bias_is_not_broadcast(shape):
    """0.0.21: a bias has all dimensions of its inputs; the error says which shape, `expand` makes it."""
    inputs = qkv()
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(*inputs, torch.zeros(shape))
    assert str(list(shape)) in str(error.value) and "[2, 3, 5, 7]" in str(error.value)
    if len(shape) <= 4:
        bias = random(shape, seed=5)
        bias = bias[:, None] if bias.ndim == 3 else bias
        check_attention(memory_efficient_attention, *inputs, tensor_bias=bias.expand(2, 3, 5, 7).requires_grad_())


def test_causal_diagonal_is_accepted():
    """0.0.21: the argument `causal_diagonal` of padded keys is taken and has no effect."""
    cls = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask
    plain, old = (cls.from_seqlens([2, 1], 4, [3, 4], **extra) for extra in ({}, {"causal_diagonal": torch.ones(2)}))
    assert rows(plain.materialize((3, 8))) == rows(old.materialize((3, 8))) == ["11000000", "11100000", "00001111"]
    inputs = qkv(batch=1, nq=3, nk=8)
    assert torch.equal(memory_efficient_attention(*inputs, plain), memory_efficient_attention(*inputs, old))


def test_row_offsets_of_a_bias_beyond_32_bits():
    """0.0.21: rows of a bias may lie more than 2^31 elements apart."""
    stride, nq, nk = 2**28, 9, 34000
    memory = torch.empty(stride * (nq - 1) + nk, dtype=torch.float16)  # only the rows themselves are ever touched
    bias = memory.as_strided((1, 1, nq, nk), (0, 0, stride, 1))
    bias.copy_(random((1, 1, nq, nk), torch.float16, seed=4))
    inputs = qkv(batch=1, nq=nq, nk=nk, heads=(1,), head_dim=8, dtype=torch.float16)
    dense = bias.contiguous()
    check_attention(lambda q, k, v, _: memory_efficient_attention(q, k, v, bias), *inputs, bias=dense)


@pytest.mark.parametrize("op", [None, "cutlass"])
@pytest.mark.parametrize("nk", [1, 5, 7, 31])
@pytest.mark.parametrize("kind", ["aligned", "unaligned", "transposed"])
def test_tensor_bias_of_any_length(kind, nk, op):
    """0.0.18: lengths that are no multiple of 8: slices of wider buffers, aligned or not, and transposed ones."""
    ops = (fmha.cutlass.FwOp, fmha.cutlass.BwOp) if op else None
    inputs = qkv(nq=6, nk=nk, head_dim=16, dtype=torch.float16)
    values = random((2, 3, 6, nk), torch.float16, seed=9)
    if kind == "transposed":
        bias = values.transpose(-1, -2).contiguous().transpose(-1, -2)
    else:
        width, first = ((nk + 7) // 8 * 8, 0) if kind == "aligned" else (nk + 3, 1)
        bias = torch.full((2, 3, 6, width), torch.nan, dtype=torch.float16)[..., first : first + nk].copy_(values)
    bias.requires_grad_()
    check_attention(lambda q, k, v, b: memory_efficient_attention(q, k, v, b, op=ops), *inputs, tensor_bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensor_bias_in_cutlass(dtype):
    """0.0.17: a tensor bias in every dtype, with several heads, with -inf."""
    bias = random((2, 3, 5, 7), dtype, seed=9)
    bias[..., :2, :3] = -torch.inf
    op = (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
    check_attention(
        lambda q, k, v, b: memory_efficient_attention(q, k, v, b, op=op),
        *qkv(dtype=dtype),
        tensor_bias=bias.requires_grad_(),
    )


def test_gradient_of_a_tensor_bias():
    """0.0.17: cutlass' backward gives the gradient of the bias where it is wanted, and None where not."""
    query, key, value = qkv(nk=7, requires_grad=False)
    bias = random((2, 3, 5, 7), seed=9)
    grad = random((2, 5, 3, 8), seed=10)
    expected = bias.clone().requires_grad_()
    memory_efficient_attention(query, key, value, expected).backward(grad)
    for wanted in (True, False):
        inp = fmha.Inputs(query, key, value, bias.clone().requires_grad_(wanted))
        _, ctx = fmha.cutlass.FwOp.apply(inp, needs_gradient=True)
        got = fmha.cutlass.BwOp.apply(ctx, inp, grad)
        if wanted:
            torch.testing.assert_close(got.db, expected.grad)
        else:
            assert got.db is None


def test_lists_of_sequences():
    """0.0.17: tensors of different lengths become one packed input, and the result is split again."""
    tensors = [random((batch, length, 2, 8), seed=length) for batch, length in ((3, 5), (2, 1), (1, 9))]
    bias, packed = ab.BlockDiagonalMask.from_tensor_list(tensors)
    assert packed.shape == (1, 26, 2, 8) and bias._batch_sizes == [3, 2, 1]
    parts = bias.split(memory_efficient_attention(packed, packed, packed, bias))
    for part, x in zip(parts, tensors, strict=True):
        torch.testing.assert_close(part, memory_efficient_attention(x, x, x))
    keys = [random((batch, length, 2, 8), seed=50 + length) for batch, length in ((3, 2), (2, 6), (1, 4))]
    cross, q, k, v = ab.BlockDiagonalMask.from_tensor_lists_qkv(tensors, keys, keys)
    parts = cross.split_queries(memory_efficient_attention(q, k, v, cross))
    for part, x, y in zip(parts, tensors, keys, strict=True):
        torch.testing.assert_close(part, memory_efficient_attention(x, y, y))
    assert all(torch.equal(a, b) for a, b in zip(cross.split_kv(k), keys, strict=True))
