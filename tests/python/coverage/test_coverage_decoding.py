"""Changes of decoding: split-K, pages, lengths that differ, additive bias; release by release."""

import math

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha

split_k = fmha.triton_splitk
forward = fmha.memory_efficient_attention_forward
with_lse = fmha.memory_efficient_attention_forward_requires_grad


def splits(count):
    return split_k.FwOp if count is None else split_k.FwOp.get_operator(count)


def check(inputs, bias=None, op=None, seen=None, both=True):
    """out and lse against the formula."""
    if bias is not None and seen is None:
        seen = bias.materialize((inputs[0].shape[1], inputs[1].shape[1]))
    out = forward(*inputs, bias, op=op)
    check_attention(lambda *_: out, *inputs, bias=seen)
    if not both:
        return
    out, lse = with_lse(*inputs, bias, op=op)
    check_attention(lambda *_: out, *inputs, bias=seen)
    q, k = (x.double().flatten(2, -2).transpose(1, 2) for x in inputs[:2])
    scores = q @ k.transpose(-1, -2) * inputs[0].shape[-1] ** -0.5
    if seen is not None:
        scores = scores + (seen.flatten(1, 2) if seen.ndim == 5 else seen).double()
    expected = scores.logsumexp(-1)
    torch.testing.assert_close(lse.flatten(1, -2).double(), expected, atol=2e-4, rtol=0)


def heads_of(query_heads, kv_heads, nq, nk, head_dim=32, dtype=torch.bfloat16, batch=1):
    """query with all heads; key and value as given, or one head expanded."""
    query = qkv(batch=batch, nq=nq, heads=(query_heads,), head_dim=head_dim, dtype=dtype, requires_grad=False)[0]
    key, value = qkv(batch=batch, nk=nk, heads=(kv_heads,), head_dim=head_dim, dtype=dtype, requires_grad=False)[1:]
    return query, *(x.expand(-1, -1, query_heads, -1) for x in (key, value))


@pytest.mark.parametrize("op", [None, "triton_splitk", "cutlass"])
def test_bias_that_hides_long_runs_of_keys(op):
    """0.0.28: no NaN where a tensor bias hides many keys in a row; a query without keys gives 0, lse -inf."""
    inputs = heads_of(2, 2, 4, 1024, dtype=torch.float16)
    bias = torch.zeros(1, 2, 4, 1024, dtype=torch.float16)
    bias[:, :, 0, :701] = -torch.inf
    bias[:, :, 1, :1023] = -torch.inf
    bias[:, :, 2] = -torch.inf
    ops = getattr(fmha, op).FwOp if op else None
    out, lse = with_lse(*inputs, bias, op=ops)
    assert out.isfinite().all() and (out[:, 2] == 0).all()
    lse = lse[..., :4]
    assert (lse[..., 2] == -torch.inf).all() and lse[..., [0, 1, 3]].isfinite().all()
    check_attention(lambda *_: out, *inputs, bias=bias)


@pytest.mark.parametrize("kv_heads", [1, 4], ids=["mqa", "mha"])
@pytest.mark.parametrize("op", [None, "triton_splitk"])
@pytest.mark.parametrize("kind", ["padded", "gappy"])
def test_different_query_lengths(kind, op, kv_heads):
    """0.0.27: sequences with different numbers of queries, none among them, in split-K."""
    q_lengths, k_lengths = [1, 0, 7, 33], [40, 3, 64, 21]
    if kind == "padded":
        bias = ab.BlockDiagonalPaddedKeysMask.from_seqlens(q_lengths, 64, k_lengths)
    else:
        bias = ab.BlockDiagonalGappyKeysMask.from_seqlens(q_lengths, [5, 70, 100, 180, 256], k_lengths)
    check(heads_of(4, kv_heads, 41, 256), bias, getattr(fmha, op).FwOp if op else None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["own pages", "shared pages"])
def test_pages_in_flash(shared, causal):
    """0.0.27: flash reads keys in pages of 256, in any order, shared or not, as if they were not paged."""
    k_lengths, page_size = [300, 17, 512], 256
    table = torch.tensor([[4, 1], [0, 5], [3, 2]], dtype=torch.int32)
    if shared:
        table[:, 0] = 4
    name = "BlockDiagonalCausalWithOffsetPaddedKeysMask" if causal else "BlockDiagonalPaddedKeysMask"
    unpaged = getattr(ab, name).from_seqlens([2, 1, 4], 512, k_lengths)
    bias = unpaged.make_paged(table, page_size, paged_type=getattr(ab, f"Paged{name}"))
    query, key, value = heads_of(4, 1, 7, 6 * 256, dtype=torch.float16)
    order = torch.cat([torch.arange(page * 256, page * 256 + 256) for page in table.flatten()])
    expected = forward(query, key[:, order], value[:, order], unpaged, op=fmha.flash.FwOp)
    for op in (fmha.flash.FwOp, split_k.FwOp, None):
        torch.testing.assert_close(forward(query, key, value, bias, op=op), expected, atol=1e-3, rtol=1e-3)
    assert unpaged.k_seqinfo.padding == 512  # make_paged leaves the bias that it came from alone


@pytest.mark.parametrize("op", [None, "triton_splitk", "flash"])
def test_memory_after_the_inputs_is_not_read(op):
    """0.0.27: what lies after q, k and v in memory never reaches the result, not even NaN."""
    backend = getattr(fmha, op).FwOp if op else None
    results = []
    for around in (0.0, torch.nan):
        inputs = []
        for i, rows in enumerate((3, 70, 70)):
            buffer = torch.full((1, 256, 2, 64), around, dtype=torch.float16)
            buffer[:, :rows] = random((1, rows, 2, 64), torch.float16, seed=i)
            inputs.append(buffer[:, :rows])
        results.append(with_lse(*inputs, op=backend))
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("nk", [64, 131])
@pytest.mark.parametrize("count", [None, 1, 4])
@pytest.mark.parametrize("groups", [(), (2,)], ids=["BMHK", "BMGHK"])
def test_additive_bias_in_split_k(groups, count, nk):
    """0.0.26: a tensor bias in split-K, odd lengths and -inf too; better: with any number of splits."""
    inputs = qkv(nq=3, nk=nk, heads=(*groups, 4), head_dim=32, dtype=torch.float16, requires_grad=False)
    bias = random((2, *groups, 4, 3, nk), torch.float16, seed=8)
    bias[..., 1, : nk // 2] = -torch.inf
    check(inputs, bias, splits(count), seen=bias)


@pytest.mark.parametrize("count", [None, 1, 2, 8, 48])
@pytest.mark.parametrize("nq", [1, 3, 4, 5, 7])
def test_number_of_splits(count, nq):
    """0.0.25: split-K with every number of splits, causal with several queries per sequence."""
    bias = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([nq] * 3, 512, [nq, 300, 512])
    check(heads_of(4, 1, 3 * nq, 3 * 512), bias, splits(count), both=count in (None, 8))


def test_operators_of_split_k():
    """0.0.25: one class per number of splits, subclasses with their own groups, the cache of the tuner."""
    assert split_k.FwOp_S8.NAME == "triton_splitK8" and split_k.FwOp_S8.SPLIT_K == 8
    assert set(split_k.FwOp_Map) >= {1, 2, 4, 8, 16, 32, 48, 64, 72, 80, 96, 112, 128}
    assert split_k.FwOp.get_operator(48) is split_k.FwOp_Map[48]
    for groups in (1, 2, 4, 8):
        op = type(f"FwOp_G{groups}", (split_k.FwOp,), {"NUM_GROUPS": groups, "NAME": f"splitK_g{groups}"})
        nk, head_dim = 40, 64
        words = [torch.randint(-(2**31), 2**31 - 1, (1, nk, 2, groups + head_dim // 8)).int() for _ in range(2)]
        generator = torch.Generator().manual_seed(groups)
        coefficients = torch.rand(2, 1, nk, 2, groups, 2, generator=generator).half()
        for x, c in zip(words, coefficients, strict=True):
            x[..., :groups] = c.view(torch.int32)[..., 0]
        query = qkv(batch=1, nq=2, heads=(2,), head_dim=head_dim, dtype=torch.float16, requires_grad=False)[0]
        plain = [dequantised_int4(x, groups, head_dim) for x in words]
        out = forward(query, *words, op=op)
        torch.testing.assert_close(out, forward(query, *plain), atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(forward(query, *words), out)  # better: the default operator infers the groups
    for groups in split_k.FwOp.NUM_GROUPS_VALUES:
        cache = split_k.get_autotuner_cache(groups)
        split_k.set_autotuner_cache(cache, groups)
        assert split_k.get_autotuner_cache(groups) == cache


def dequantised_int4(words, groups, head_dim):
    """By hand: groups coefficient words (fp16 scale, fp16 shift), then eight nibbles a word, lowest bits first."""
    scale, shift = words[..., :groups].contiguous().view(torch.float16).unflatten(-1, (groups, 2)).unbind(-1)
    nibbles = torch.stack([(words[..., groups:] >> (4 * e)) & 15 for e in range(8)], -1).flatten(-2)
    values = nibbles.unflatten(-1, (groups, head_dim // groups)).float()
    return (values * scale.float()[..., None] + shift.float()[..., None]).flatten(-2).half()


def test_decode_loop():
    """0.0.22: token by token over a padded cache, lengths growing in place on the device, equals attention over all."""
    batch, padding, heads, head_dim = 3, 24, (2, 3), 16
    prompts, steps = [5, 1, 8], 6
    generator = torch.Generator().manual_seed(0)
    longest = max(prompts) + steps
    query, key, value = (torch.randn(batch, longest, *heads, head_dim, generator=generator) for _ in range(3))
    key, value = (x[:, :, :, :1].expand(-1, -1, -1, heads[1], -1) for x in (key, value))
    caches = [torch.full((1, batch * padding, heads[0], 1, head_dim), torch.nan) for _ in range(2)]
    for b, length in enumerate(prompts):
        for cache, x in zip(caches, (key, value), strict=True):
            cache[0, b * padding : b * padding + length] = x[b, :length, :, :1]
    bias = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1] * batch, padding, prompts)
    for step in range(steps):
        positions = [length + step for length in prompts]
        for b, position in enumerate(positions):
            for cache, x in zip(caches, (key, value), strict=True):
                cache[0, b * padding + position] = x[b, position, :, :1]
        bias.k_seqinfo.seqlen.add_(1)  # on the device alone: the host's copies grow stale
        now = torch.stack([query[b, position] for b, position in enumerate(positions)])[None]
        keys, values = (cache.expand(-1, -1, -1, heads[1], -1) for cache in caches)
        out = forward(now, keys, values, bias)
        for b, position in enumerate(positions):
            rows = slice(0, position + 1)
            expected = forward(query[b : b + 1, position : position + 1], key[b : b + 1, rows], value[b : b + 1, rows])
            torch.testing.assert_close(out[:, b], expected[:, 0])


def first_choice(query_shape, key_heads, nk, bias=None, dtype=torch.float16):
    query = torch.empty(query_shape, dtype=dtype)
    key = torch.empty(query_shape[0], nk, key_heads, query_shape[-1], dtype=dtype).expand(-1, -1, query_shape[2], -1)
    return fmha.dispatch._dispatch_fw(fmha.Inputs(query, key, key, bias), needs_gradient=False)


def test_when_decoding_is_dispatched():
    """0.0.22: split-K is considered for few queries against long expanded keys, and only then."""
    assert first_choice((1, 8, 32, 128), 1, 2048) is fmha.flash.FwOp
    assert first_choice((1, 8, 32, 512), 1, 2048) is split_k.FwOp  # flash stops at 256
    for shape, key_heads in (((1, 8, 32, 128), 32), ((1, 128, 32, 128), 1), ((128, 8, 32, 128), 1)):
        assert first_choice(shape, key_heads, 2048) is not split_k.FwOp


@pytest.mark.parametrize("op", [None, "triton_splitk"])
def test_accuracy_over_65536_keys(op):
    """0.0.22: one sequence of 65536 keys."""
    check(heads_of(2, 1, 4, 65536), op=getattr(fmha, op).FwOp if op else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nk", [1, 80, 2049])
def test_single_query_of_every_head(nk, dtype):
    """0.0.21: one query per sequence with as many key heads, what the decoder without tensor cores was for."""
    lengths = [nk, max(1, nk // 3)]
    bias = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], nk, lengths)
    check(heads_of(4, 4, 2, 2 * nk, head_dim=64, dtype=dtype), bias)


def test_lse_is_a_natural_logarithm():
    """0.0.25: merging goes by natural log-sum-exp: n equal keys add ln n."""
    query, key, value = (
        x[:, :1] for x in qkv(batch=1, nq=1, nk=1, head_dim=16, dtype=torch.float16, requires_grad=False)
    )
    _, one = with_lse(query, key, value, op=split_k.FwOp)
    _, many = with_lse(query, key.expand(-1, 100, -1, -1), value.expand(-1, 100, -1, -1), op=split_k.FwOp)
    torch.testing.assert_close(many - one, torch.full_like(one, math.log(100)), atol=2e-4, rtol=0)
