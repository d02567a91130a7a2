"""rope_padded and the rotary operator against complex multiplication in fp64: every mode, caches, errors."""

import math

import pytest
import torch
from blocks_reference import DTYPES, TOLERANCE, random
from devices import on_each_device  # noqa: F401
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask

from xformers.ops import rope_padded

rotary = torch.ops.xformers.rotary
UNTOUCHED = 7.0


def frequencies(head_dim, theta=10000.0, linear_scale=1.0, dynamic=None):
    result = theta ** (-2 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim)
    if dynamic:
        old, factor, low, high = dynamic
        stretched = []
        for f in result.tolist():
            wavelength = 2 * math.pi / f
            if wavelength < old / high:
                stretched.append(f)
            elif wavelength > old / low:
                stretched.append(f / factor)
            else:
                smooth = (old / wavelength - low) / (high - low)
                stretched.append((1 - smooth) * f / factor + smooth * f)
        result = torch.tensor(stretched, dtype=torch.float64)
    return result / linear_scale


def turned(x, positions, freqs, adjacents):
    """x [tokens, ..., head_dim]."""
    x = x.double()
    half = x.shape[-1] // 2
    pairs = (
        torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
        if adjacents
        else torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
    )
    angles = positions.double()[:, None] * freqs
    for _ in range(x.dim() - 2):
        angles = angles.unsqueeze(1)
    product = pairs * torch.polar(torch.ones_like(angles), angles)
    if adjacents:
        return torch.view_as_real(product).flatten(-2)
    return torch.cat([product.real, product.imag], -1)


def assert_turned(result, x, positions, freqs, adjacents):
    """Each element is a sum of two products: the error is relative to the length of the pair."""
    expected = turned(x, positions, freqs, adjacents)
    error = (result.double() - expected).abs()
    allowed = TOLERANCE[result.dtype] * (
        expected.abs() + 1e-1 if result.dtype.itemsize == 2 else x.abs().max().double()
    )
    assert bool((error <= allowed).all()), f"{(error / allowed).max().item():.3g} times the allowed error"


class Problem:
    """Packed tokens of several sequences, each with its padded cache."""

    def __init__(
        self, q_lengths, k_lengths, padding, heads_q=4, heads_kv=2, head_dim=16, groups=0, dtype=torch.float32
    ):
        self.bias = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            q_seqlen=q_lengths, kv_padding=padding, kv_seqlen=k_lengths, device=torch.get_default_device()
        )
        tokens, lead = sum(q_lengths), ((groups,) if groups else ())
        self.xq, self.xk, self.xv = (
            random((1, tokens, *lead, heads, head_dim), dtype, i)
            for i, heads in enumerate((heads_q, heads_kv, heads_kv))
        )
        cache_shape = (1, padding * len(q_lengths), *lead, heads_kv, head_dim)
        self.cache_k, self.cache_v = (torch.full(cache_shape, UNTOUCHED, dtype=dtype) for _ in range(2))
        starts = [padding * b for b in range(len(q_lengths))]
        self.slots = torch.tensor(
            [s + k - q + i for s, k, q in zip(starts, k_lengths, q_lengths, strict=True) for i in range(q)],
            dtype=torch.long,
        )
        self.positions = torch.tensor(
            [k - q + i for k, q in zip(k_lengths, q_lengths, strict=True) for i in range(q)], dtype=torch.long
        )
        self.sequence = torch.tensor([b for b, q in enumerate(q_lengths) for _ in range(q)], dtype=torch.long)

    def tensors(self):
        return self.xq, self.xk, self.xv, self.cache_k, self.cache_v

    def check(self, out, positions=None, freqs=None, adjacents=True):
        positions = self.positions if positions is None else positions
        freqs = frequencies(self.xq.shape[-1]) if freqs is None else freqs
        assert_turned(out[0], self.xq[0], positions, freqs, adjacents)
        assert_turned(self.cache_k[0, self.slots], self.xk[0], positions, freqs, adjacents)
        assert torch.equal(self.cache_v[0, self.slots], self.xv[0])
        others = torch.ones(self.cache_k.shape[1], dtype=torch.bool)
        others[self.slots] = False
        assert bool((self.cache_k[0, others] == UNTOUCHED).all()) and bool((self.cache_v[0, others] == UNTOUCHED).all())


@pytest.mark.parametrize("adjacents", [True, False])
@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize("head_dim", [2, 100, 128, 4098])
@pytest.mark.parametrize("dtype", DTYPES)
def test_turns_and_stores(dtype, head_dim, groups, adjacents):
    problem = Problem([3, 0, 7], [5, 7, 19], 87 if groups else 20, head_dim=head_dim, groups=groups, dtype=dtype)
    out = rope_padded(*problem.tensors(), problem.bias, adjacents=adjacents)
    assert out.shape == problem.xq.shape and out.dtype == dtype and out.is_contiguous()
    problem.check(out, adjacents=adjacents)


@pytest.mark.parametrize("internal_dtype", ["", "f32", "f64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_internal_dtype(dtype, internal_dtype):
    problem = Problem([5, 1], [300, 18000], 18300, dtype=dtype)
    problem.check(rope_padded(*problem.tensors(), problem.bias, internal_dtype=internal_dtype))


@pytest.mark.parametrize("adjacents", [True, False])
def test_scalings(adjacents):
    for options, freqs in (
        (dict(theta=500000.0), frequencies(64, 500000.0)),
        (dict(linear_scale=8.0), frequencies(64, linear_scale=8.0)),
        (dict(use_dynamic_scaling=True), frequencies(64, dynamic=(8192.0, 16.0, 1.0, 32.0))),
        (
            dict(
                use_dynamic_scaling=True,
                dynamic_old_context_len=100.0,
                dynamic_scale_factor=4.0,
                dynamic_low_freq_factor=2.0,
                dynamic_high_freq_factor=20.0,
                linear_scale=2.0,
                theta=1000.0,
            ),
            frequencies(64, 1000.0, 2.0, (100.0, 4.0, 2.0, 20.0)),
        ),
    ):
        problem = Problem([4, 9], [100, 20], 120, head_dim=64)
        problem.check(
            rope_padded(*problem.tensors(), problem.bias, adjacents=adjacents, **options),
            freqs=freqs,
            adjacents=adjacents,
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions(dtype):
    problem = Problem([3, 2], [5, 9], 10)
    first = torch.tensor([100, 7], dtype=dtype)
    out = rope_padded(*problem.tensors(), problem.bias, first_seqpos=first)
    problem.check(out, positions=problem.positions + first[problem.sequence])
    given = torch.tensor([9, 0, 123456, 1, 2], dtype=dtype)
    out = rope_padded(*problem.tensors(), problem.bias, seqpos=given)
    problem.check(out, positions=given)


def test_angles_stay_exact_far_out():
    """fp32 angles would be wrong by 0.06 at a million; ours are exact."""
    problem = Problem([2], [2], 4)
    problem.check(
        rope_padded(*problem.tensors(), problem.bias, seqpos=torch.tensor([10**6, 10**6 + 1])),
        torch.tensor([10**6, 10**6 + 1]),
    )


def test_out_q_and_strides():
    problem = Problem([3, 4], [5, 9], 12, head_dim=32)
    out_q = torch.empty(1, 7, 8, 64)[:, :, ::2, 16:48]
    out = rope_padded(*problem.tensors(), problem.bias, out_q=out_q)  # in grad mode, since nothing requires a gradient
    assert out is out_q
    problem.check(out)

    other = Problem([3, 4], [5, 9], 12, head_dim=32)
    other.xq = other.xq.transpose(1, 2).contiguous().transpose(1, 2)
    other.cache_k = torch.full((1, 2, 24, 40), UNTOUCHED).transpose(1, 2)[..., 4:36]
    other.check(rope_padded(*other.tensors(), other.bias))

    same = Problem([3, 4], [5, 9], 12, head_dim=32)  # turned in place
    expected = rope_padded(*same.tensors(), same.bias, adjacents=False)
    assert torch.equal(rope_padded(*same.tensors(), same.bias, adjacents=False, out_q=same.xq), expected)


def test_keys_that_lie_in_the_cache():
    problem = Problem([3], [5], 6)
    slots = problem.cache_k[:, 2:5], problem.cache_v[:, 2:5]
    for slot, new in zip(slots, (problem.xk, problem.xv), strict=True):
        slot.copy_(new)
    out = rope_padded(problem.xq, *slots, problem.cache_k, problem.cache_v, problem.bias)
    problem.check(out)


@pytest.mark.parametrize("groups", [0, 3])
def test_expanded_heads(groups):
    problem = Problem([3, 4], [5, 9], 12, heads_kv=1, groups=groups)
    wide = [t.expand(*t.shape[:-2], 4, t.shape[-1]) for t in (problem.xk, problem.xv)]
    problem.check(rope_padded(problem.xq, *wide, problem.cache_k, problem.cache_v, problem.bias))
    again = Problem([3, 4], [5, 9], 12, heads_kv=1, groups=groups)
    caches = [t.expand(*t.shape[:-2], 4, t.shape[-1]) for t in (again.cache_k, again.cache_v)]
    again.check(rope_padded(again.xq, *wide, *caches, again.bias))


def test_many_queries():
    problem = Problem([2**16 + 3, 5], [2**16 + 10, 5], 2**16 + 20, heads_q=1, heads_kv=1, head_dim=8)
    problem.check(rope_padded(*problem.tensors(), problem.bias))


def test_nothing():
    problem = Problem([0, 0], [3, 0], 4)
    assert rope_padded(*problem.tensors(), problem.bias).shape == (1, 0, 4, 16)
    assert bool((problem.cache_k == UNTOUCHED).all())


def test_gradients_are_refused():
    problem = Problem([3], [5], 6)
    with torch.no_grad():
        rope_padded(problem.xq.requires_grad_(), *problem.tensors()[1:], problem.bias)
    with pytest.raises(ValueError, match="Gradients not supported"):
        rope_padded(*problem.tensors(), problem.bias)
    with pytest.raises(ValueError, match="Gradients not supported"):
        rope_padded(*problem.tensors(), problem.bias, out_q=torch.empty_like(problem.xq))


def cut(t):
    return t[..., :-1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: dict(xq=p.xq[0]), "xq"),
        (lambda p: dict(xk=p.xk.repeat(1, 2, 1, 1)), "xk is [1, 6, 2, 16] fp32 cpu, expected [1, 3, 2, 16]"),
        (lambda p: dict(xv=p.xv[:, :, :1]), "xv is [1, 3, 1, 16] fp32 cpu, expected [1, 3, 2, 16]"),
        (lambda p: dict(xv=p.xv.half()), "xv.dtype is fp16, expected fp32, that of xq"),
        (lambda p: dict(cache_k=p.cache_k[:, :, :1]), "cache_k is [1, 6, 1, 16] fp32 cpu, expected [1, 6, 2, 16]"),
        (lambda p: dict(cache_v=p.cache_v[:, :5]), "cache_v is [1, 5, 2, 16] fp32 cpu, expected [1, 6, 2, 16]"),
        (lambda p: dict(cache_k=p.cache_k[:, :5], cache_v=p.cache_v[:, :5]), "cache_k has 5 keys, expected 6"),
        (lambda p: dict(xq=p.xq.repeat(1, 2, 1, 1)), "xq has 6 queries, expected 3"),
        (lambda p: dict(xq=p.xq.transpose(2, 3).contiguous().transpose(2, 3)), "1 as the last stride"),
        (lambda p: {n: cut(getattr(p, n)) for n in ("xq", "xk", "xv", "cache_k", "cache_v")}, "even last dimension"),
        (lambda p: dict(xk=p.xk[:, :, :1].expand(1, 3, 2, 16)), "both with expanded heads or neither"),
        (lambda p: dict(first_seqpos=torch.tensor([1, 2])), "first_seqpos is [2] int64 cpu, expected [1]"),
        (lambda p: dict(seqpos=torch.tensor([1, 2])), "seqpos is [2] int64 cpu, expected [3]"),
        (lambda p: dict(seqpos=torch.ones(3)), "seqpos.dtype is fp32, expected integers"),
        (lambda p: dict(seqpos=torch.ones(3).int(), first_seqpos=torch.ones(1).int()), "seqpos is given beside first"),
        (lambda p: dict(out_q=torch.empty(1, 3, 4, 8)), "out_q is [1, 3, 4, 8]"),
        (lambda p: dict(out_q=p.xq.half()), "out_q.dtype is fp16"),
        (lambda p: dict(xk=p.xk.to("meta")), "device"),
    ],
)
def test_errors(device, change, message):
    message = message.replace(" cpu", f" {torch.empty(0).device}")
    problem = Problem([3], [5], 6)
    arguments = dict(zip(("xq", "xk", "xv", "cache_k", "cache_v"), problem.tensors(), strict=True))
    arguments.update(change(problem))
    with pytest.raises(ValueError) as error:
        rope_padded(**arguments, attn_bias=problem.bias)
    assert message in str(error.value)
    assert bool((problem.cache_k == UNTOUCHED).all())
    with pytest.raises(AssertionError):
        rope_padded(*problem.tensors(), problem.bias, internal_dtype="f16")


@pytest.mark.parametrize(
    "offsets, message",
    [
        (dict(k_seqlen=[13, 2]), "keys of sequence 0 is 0 to 13"),
        (dict(k_seqlen=[2, 5]), "key length of sequence 0 is 2, expected at least its 3 queries"),
        (dict(k_seqstart=[-1, 6]), "keys of sequence 0"),
        (dict(k_seqstart=[0, 10]), "keys of sequence 1 is 10 to 14"),
        (dict(q_seqstart=[0, 4, 3]), "queries of sequence 1 is 4 to 3"),
        (dict(q_seqstart=[0, 3, 9]), "queries of sequence 1 is 3 to 9"),
        (dict(q_seqstart=[0, 1, 3]), "the last query offset is 3, expected 5"),
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_offsets_that_do_not_fit(device, offsets, message, checked, monkeypatch):
    """A bias checks itself; these are calls of the operator with offsets of one's own."""
    problem = Problem([3, 2], [4, 4], 6)
    given = dict(q_seqstart=[0, 3, 5], k_seqstart=[0, 6], k_seqlen=[4, 4])
    given.update(offsets)
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in given.items()}
    if checked:
        monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")
    if checked or device == "cpu":
        with pytest.raises(ValueError) as error:
            torch.ops.xformers.rope_padded(*problem.tensors(), **tensors)
        assert message in str(error.value)
        assert bool((problem.cache_k == UNTOUCHED).all())
        return
    # A GPU reads them when the call has long returned: queries without a place become NaN and write nothing.
    out = torch.ops.xformers.rope_padded(*problem.tensors(), **tensors)
    lost = out.isnan().flatten(2).all(-1)
    assert bool(lost.any()) and bool((lost == out.isnan().flatten(2).any(-1)).all())
    written = (problem.cache_v != UNTOUCHED).flatten(2).any(-1)
    assert int(written.sum()) <= int((~lost).sum())


@pytest.mark.parametrize("adjacents", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(dtype, adjacents):
    for shape in ((2, 3, 50, 64), (50, 6), (2, 1, 8)):
        x = random(shape, dtype, 0, True)
        out = rotary(x, adjacents=adjacents)
        assert out.dtype == dtype and out.shape == x.shape
        sequences = x.detach().reshape(-1, *shape[-2:]).transpose(0, 1)
        expected = out.detach().reshape(-1, *shape[-2:]).transpose(0, 1)
        assert_turned(expected, sequences, torch.arange(shape[-2]), frequencies(shape[-1]), adjacents)
        back = rotary(out.detach(), adjacents=adjacents, inverse=True)
        assert torch.allclose(back, x.detach(), rtol=3 * TOLERANCE[dtype], atol=8 * TOLERANCE[dtype])
        out.backward(grad := random(shape, dtype, 1))
        assert torch.equal(x.grad, rotary(grad, adjacents=adjacents, inverse=True))
    x = random((3, 20, 2, 8), dtype).transpose(1, 2)  # [batch, heads, seqlen, head_dim] as projections give it
    assert torch.equal(rotary(x), rotary(x.contiguous()))


def test_rotary_gradcheck_and_errors():
    x = random((2, 3, 4), torch.float64, 0, True)
    assert torch.autograd.gradcheck(rotary, (x,)) and torch.autograd.gradgradcheck(rotary, (x,))
    for bad in (torch.ones(4), torch.ones(2, 3), torch.ones(2, 4).int()):
        with pytest.raises(ValueError, match="rotary"):
            rotary(bad)
