"""`components.attention.core`: every kind of mask against the formula in fp64, sparse routes against dense ones."""

import copy
import itertools

import mechanisms_reference as reference
import pytest
import torch
import xformers.components.attention as attention
from xformers.components.attention import AttentionMask, core, maybe_sparsify, sparsify
from xformers.components.attention.core import SparseCS, scaled_dot_product_attention
from xformers.helpers.timm_sparse_attention import TimmSparseAttention

import xformers  # noqa: F401

N, S, K = 6, 50, 8
BOOL = ("dense", "wrapped", "SparseCS", "COO")


def inputs(dtype=torch.float64, seqlen_k=S, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    shapes = ((N, S, K), (N, seqlen_k, K), (N, seqlen_k, K))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad) for s in shapes
    ]


def pattern(seqlen_k=S, share=0.2):
    keep = torch.rand(S, seqlen_k, generator=torch.Generator().manual_seed(2)) < share
    keep[7] = False  # a row that sees nothing
    return keep


def as_kind(keep, kind):
    if kind == "wrapped":
        return AttentionMask.from_bool(keep)
    return {"dense": keep, "SparseCS": None if kind != "SparseCS" else SparseCS(keep), "COO": keep.to_sparse()}[kind]


def with_gradients(out, tensors):
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, tensors, weights)]


def near(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def identity(weights):
    """A dropout that is none: weights are made for it."""
    return weights * 1


@pytest.mark.parametrize("kind", BOOL)
@pytest.mark.parametrize("seqlen_k", [S, 33])
@pytest.mark.parametrize("dropout", [None, identity], ids=["fused", "weights"])
def test_boolean_masks(kind, seqlen_k, dropout):
    """0.0.4: sparse and dense routes agree, forward and backward."""
    keep, tensors = pattern(seqlen_k), inputs(seqlen_k=seqlen_k, requires_grad=True)
    got = with_gradients(scaled_dot_product_attention(*tensors, as_kind(keep, kind), dropout), tensors)
    near(got, with_gradients(reference.softmax_attention(*tensors, keep), tensors))
    assert got[0][:, 7].eq(0).all()


@pytest.mark.parametrize("kind", ["dense", "wrapped", "SparseCS", "COO"])
@pytest.mark.parametrize("dropout", [None, identity], ids=["fused", "weights"])
def test_additive_masks(kind, dropout):
    """Those of SparseCS are added on their pattern; of a COO tensor where it has values, and all keys are seen."""
    keep, tensors = pattern(), inputs(requires_grad=True)
    values = torch.randn(S, S, dtype=torch.float64)
    if kind in ("SparseCS", "COO"):
        values = values * keep
    mask = {"dense": lambda: values, "wrapped": lambda: AttentionMask(values)}.get(
        kind, lambda: SparseCS(values) if kind == "SparseCS" else values.to_sparse()
    )()
    got = with_gradients(scaled_dot_product_attention(*tensors, mask, dropout), tensors)
    seen = keep if kind == "SparseCS" else None
    near(got, with_gradients(reference.softmax_attention(*tensors, seen, values), tensors))


@pytest.mark.parametrize("kind", ["bool", "added", "wrapped", "COO"])
@pytest.mark.parametrize("batch", [1, 2, N])
def test_masks_of_a_part_of_the_batch(kind, batch):
    """Heads are folded batch first: a mask of `batch` elements belongs to N / batch neighbours."""
    keep = torch.rand(batch, S, S, generator=torch.Generator().manual_seed(4)) > 0.5
    tensors = inputs()
    expected = reference.softmax_attention(*tensors, keep.repeat_interleave(N // batch, 0))
    added = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -torch.inf)
    mask = {"bool": keep, "added": added, "wrapped": AttentionMask(added), "COO": keep.to_sparse()}[kind]
    assert torch.allclose(scaled_dot_product_attention(*tensors, mask), expected)
    if kind != "COO" or batch == N:
        assert torch.allclose(scaled_dot_product_attention(*tensors, mask, identity), expected)


def test_no_mask_and_four_dimensions():
    tensors = inputs()
    assert torch.allclose(scaled_dot_product_attention(*tensors), reference.softmax_attention(*tensors))
    keep = pattern()
    for mask in (None, keep, AttentionMask.make_causal(S, S), SparseCS(keep), keep.to_sparse()):
        folded = scaled_dot_product_attention(*tensors, mask)
        for dropout in (None, identity):
            out = scaled_dot_product_attention(*(t.view(2, 3, S, K) for t in tensors), mask, dropout)
            assert out.shape == (2, 3, S, K) and torch.allclose(out.reshape(folded.shape), folded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*BOOL, "none"])
def test_dtypes_of_results(kind, dtype):
    """Of dense masks that of the inputs or of autocast, of sparse ones fp32."""
    mask = None if kind == "none" else as_kind(pattern(), kind)
    expected = torch.float32 if kind in ("SparseCS", "COO") else dtype
    single = inputs(torch.float32)
    exact = scaled_dot_product_attention(*inputs(), mask)
    with torch.autocast("cpu", dtype):
        out = scaled_dot_product_attention(*single, mask)
    assert out.dtype == expected and torch.allclose(out.double(), exact, atol=0.05)
    assert scaled_dot_product_attention(*inputs(dtype), mask).dtype == expected
    assert scaled_dot_product_attention(*single, mask).dtype == torch.float32


@pytest.mark.parametrize("block_size", [10, 128])
@pytest.mark.parametrize("dims", [3, 4])
def test_causal_switch(block_size, dims):
    """0.0.12: a causal mask is the causal kernel, in q's dtype under autocast too, and no matrix is made; a tensor that
    happens to be causal is a mask like any other."""
    tensors = [t if dims == 3 else t.view(2, 3, S, K) for t in inputs(torch.float32)]
    mask = AttentionMask.make_causal(S, S)
    expected = reference.softmax_attention(*(t.double() for t in tensors), reference.triangle(S, S))
    out = scaled_dot_product_attention(*tensors, mask, block_size=block_size)
    assert torch.allclose(out.double(), expected, atol=1e-6) and mask._values is None
    assert torch.equal(core.blocksparse_attention(*tensors, block_size=block_size), out)
    with torch.autocast("cpu", torch.bfloat16):
        switched = scaled_dot_product_attention(*tensors, mask, block_size=block_size)
        tensor = scaled_dot_product_attention(*tensors, reference.triangle(S, S), block_size=block_size)
    assert switched.dtype == torch.float32 and tensor.dtype == torch.bfloat16
    assert torch.allclose(switched.double(), expected, atol=0.05)
    for dtype in (torch.float16, torch.bfloat16):
        half = core.blocksparse_attention(*(t.to(dtype) for t in tensors))
        assert half.dtype == dtype and torch.allclose(half.double(), expected, atol=0.05)


def test_future_tokens_change_nothing():
    tensors = inputs()
    changed = [torch.cat([t[:, :30], torch.randn_like(t[:, 30:])], 1) for t in tensors]
    for mask in (AttentionMask.make_causal(S, S), SparseCS(pattern(share=0.6).tril())):
        out, other = (scaled_dot_product_attention(*x, mask) for x in (tensors, changed))
        assert torch.equal(out[:, :30], other[:, :30]) and not torch.equal(out[:, 30:], other[:, 30:])


@pytest.mark.parametrize("kind", [*BOOL, "none"])
def test_dropout(kind):
    """Only in training; any callable is given the weights."""
    mask, tensors = None if kind == "none" else as_kind(pattern(), kind), inputs(torch.float32)
    drop = torch.nn.Dropout(0.5)
    torch.manual_seed(0)
    first, second = (scaled_dot_product_attention(*tensors, mask, drop) for _ in range(2))
    assert not torch.equal(first, second)
    drop.eval()
    plain = scaled_dot_product_attention(*tensors, mask)
    assert torch.equal(scaled_dot_product_attention(*tensors, mask, drop), plain)
    doubled = scaled_dot_product_attention(*tensors, mask, lambda weights: weights * 2)
    assert torch.allclose(doubled, 2 * plain, atol=1e-5)
    given = []
    scaled_dot_product_attention(*tensors, mask, lambda weights: given.append(weights) or weights)
    stored = int(pattern().sum()) * (N if kind == "COO" else N)
    if kind in ("SparseCS", "COO"):
        assert given[0].numel() == stored
    else:
        assert given[0].shape == (N, S, S)


def test_unused_weights_are_never_made():
    """Nothing of S x S elements for causal masks and sparse ones."""
    long = 2048
    tensors = [torch.randn(1, long, 8, requires_grad=True) for _ in range(3)]
    places = torch.arange(long)
    window = SparseCS((places[:, None] - places).abs() < 20)
    scaled_dot_product_attention(*tensors, window)  # its blocks are made once
    for mask in (AttentionMask.make_causal(long, long), window):
        with torch.profiler.profile(profile_memory=True) as profile:
            scaled_dot_product_attention(*tensors, mask).sum().backward()
        sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        assert len(sizes) > 4 and max(sizes) < long * long / 8


@pytest.mark.parametrize("kind", ["SparseCS", "COO", "dense", "wrapped"])
def test_weights_alone(kind):
    keep, (q, k, _) = pattern(), inputs()
    weights = core.scaled_query_key_softmax(q, k, as_kind(keep, kind))
    dense = weights.to_dense() if kind in ("SparseCS", "COO") else weights
    assert torch.allclose(dense, reference.softmax_attention(q, k, torch.eye(S, dtype=q.dtype).expand(N, S, S), keep))


@pytest.mark.parametrize("kind", ["SparseCS", "COO", "dense"])
def test_bmm(kind):
    """Differentiable in both; places of a COO tensor may differ over the batch."""
    dense = torch.randn(N, S, S, dtype=torch.float64) * (pattern() if kind == "SparseCS" else torch.rand(N, S, S) > 0.8)
    b = torch.randn(N, S, K, dtype=torch.float64, requires_grad=True)
    if kind == "COO":
        leaf = dense.to_sparse().coalesce().values().requires_grad_()
        a = torch.sparse_coo_tensor(dense.to_sparse().indices(), leaf, dense.shape, is_coalesced=True)
    else:
        a = SparseCS(dense) if kind == "SparseCS" else dense
        leaf = a.values.requires_grad_() if kind == "SparseCS" else a.requires_grad_()
    out = core.bmm(a, b)
    out.square().sum().backward()
    plain, again = dense.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    expected = plain @ again
    expected.square().sum().backward()
    assert torch.allclose(out, expected) and torch.allclose(b.grad, again.grad)
    places = slice(None) if kind == "dense" else dense != 0
    assert torch.allclose(leaf.grad.flatten(), plain.grad[places].flatten())


def test_helpers():
    ones = torch.ones(3, 20, 24, dtype=torch.bool)
    for divisible in (4, 7):
        sparse = core._create_random_sparsity(ones, 0.7, divisible)
        assert sparse.dtype == torch.bool and all(torch.equal(sparse[0], x) for x in sparse)
        assert int(sparse[0].sum()) % divisible == 0 and 0 < sparse.float().mean() < 0.6
    mask = pattern().to_sparse()
    assert torch.equal(core._broadcast_batch(mask, 3).to_dense(), pattern().expand(3, S, S))
    scores = torch.randn(2, 5, 5)
    masked = scores.masked_fill(~reference.triangle(5, 5), -torch.inf)
    assert torch.allclose(core._softmax(scores, causal=True), masked.softmax(-1))
    a, b = torch.randn(2, S, K), torch.randn(2, K, S)
    for mask, expected in (
        (None, a @ b),
        (pattern(), (a @ b).masked_fill(~pattern(), -torch.inf)),
        (pattern().to_sparse(), (a @ b) * pattern()),
        (pattern().float().to_sparse(), a @ b + pattern().float()),
        (SparseCS(pattern()), (a @ b) * pattern()),
    ):
        got = core._matmul_with_mask(a, b, mask)
        got = got.to_dense() if not isinstance(got, torch.Tensor) or got.is_sparse else got
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["SparseCS", "added SparseCS", "COO"])
def test_sparse_masks_in_modules(kind):
    """Every module with masks takes them, alone and beside what else hides keys."""
    keep, tensors = pattern(), inputs()
    values = torch.rand(S, S, dtype=torch.float64) * keep
    mask = SparseCS(values) if kind == "added SparseCS" else as_kind(keep, kind)
    added = values if kind == "added SparseCS" else None
    near_keys = (torch.arange(S)[:, None] - torch.arange(S)).abs() <= 3
    for name, options, seen in (
        ("scaled_dot_product", {}, keep),
        ("scaled_dot_product", {"causal": True}, keep.tril()),
        ("local", {"window_size": 7}, keep & near_keys),
        ("random", {"r": 1.0}, keep),
    ):
        module = attention.build_attention({"name": name, **options})
        out = module(*tensors, att_mask=mask)
        assert torch.allclose(out, reference.softmax_attention(*tensors, seen, added)), name
    padding = torch.arange(S) < torch.tensor([[40]] * N)
    out = attention.ScaledDotProduct()(*tensors, att_mask=mask, key_padding_mask=padding)
    assert torch.allclose(out, reference.softmax_attention(*tensors, keep & padding[:, None], added))
    timm = TimmSparseAttention(24, 3, attn_mask=mask).double()
    x = torch.randn(2, S, 24, dtype=torch.float64)
    dense = copy.deepcopy(timm)
    dense.attn_mask = keep if added is None else added.masked_fill(~keep, -torch.inf)
    assert torch.allclose(timm(x), dense(x))


def test_maybe_sparsify():
    keep = torch.zeros(10, 10, dtype=torch.bool)
    keep.view(-1)[:30] = True
    assert attention._DENSITY_THRESHOLD == 0.30
    assert isinstance(maybe_sparsify(keep), SparseCS) and maybe_sparsify(keep).device == keep.device
    keep.view(-1)[30] = True
    assert isinstance(maybe_sparsify(keep), AttentionMask) and isinstance(sparsify(keep), SparseCS)
    for mask, share in itertools.product((maybe_sparsify, sparsify), (0.1, 0.5)):
        keep = pattern(share=share)
        dense = mask(keep)
        assert torch.equal(dense.to_dense()[0] if dense.is_sparse else dense.to_bool()[0], keep)
