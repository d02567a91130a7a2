"""2:4 sparsity against a reference of its own (sparse24_reference.py): packing, masks, products, the tensor classes."""

import copy
import io
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import DTYPES, TOLERANCE, random
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse24_reference import ALGORITHMS, mask_of, reference_mask, unpacked, words_of
from torch.library import opcheck
from xformers.ops.sp24 import (
    MLP24,
    Linear24,
    Sparse24Tensor,
    Sparse24TensorCuSparseLt,
    Sparse24TensorCutlass,
    sparsify24,
    sparsify24_activation,
    sparsify24_like,
    sparsify24_ste,
)

import xformers.ops
from xformers.ops import sp24

ops = torch.ops.xformers
BACKENDS = ["cutlass", "cusparselt"]
GRADIENTS = ["24sparse", "24dense", "ste"]


def same(a, b):
    """Equal values; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def close(result, expected, terms, dtype=None):
    """One rounding of the result, and those of the sum; terms: sum of magnitudes."""
    error = (result.detach().double() - expected.detach().double()).abs()
    tolerance = TOLERANCE[dtype or result.dtype]
    allowed = tolerance * 1.01 * expected.detach().double().abs() + 1e-5 * terms.detach().double() + 1e-7
    assert (error <= allowed).all(), (error / allowed).max()


# ---- selection ----
EXAMPLES = [
    (
        "largest_abs_values_greedy",
        [[4, 3, 2, 1], [-1, -3, 0.6, 0.5], [1, 2, 3, 4], [10, 2, -1, 5]],
        "1100 0110 0011 1001",
    ),
    ("causal1122", [[4, 3, 2, 1], [-1, -3, 0.6, 0.5], [1, 2, 3, 4], [10, 2, -1, 5]], "1000 0010 0011 1001"),
    ("", [[4, 3, 2, 1], [0, 0, 0.5, 0.5], [1, 2, 3, 4], [10, 2, -1, 5]], "1100 0110 0011 1001"),
    ("", [[2, -1, -2, -3], [-1, 8, -1, 6], [-1, -1, 4, 5], [-1, 3, 7, -1]], "1000 0101 0011 0110"),
]


@pytest.mark.parametrize("case", range(len(EXAMPLES)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_examples(case, dtype):
    algorithm, values, expected = EXAMPLES[case]
    x = torch.tensor(values, dtype=dtype)
    mask = torch.tensor([[c == "1" for c in row] for row in expected.split()])
    assert torch.equal(reference_mask(x, algorithm), mask)
    masks = ops.sparse24_sparsify_both_ways(x, algorithm)[4]
    assert torch.equal(mask_of(masks, 4, 4), mask)


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, float("inf"), -float("inf"), float("nan")])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 300),
    cols=st.integers(0, 300),
    extra=st.integers(0, 9),
    algorithm=st.sampled_from(ALGORITHMS),
    dtype=st.sampled_from(DTYPES),
    special=st.lists(values, min_size=1, max_size=8),
    seed=st.integers(0, 2**30),
)
def test_packing(rows, cols, extra, algorithm, dtype, special, seed):
    rows, cols = rows % 80 if seed % 4 else rows, cols % 80  # the reference takes its time
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows, cols + extra, generator=generator).to(dtype)
    ties = torch.tensor(special, dtype=dtype)[torch.randint(len(special), whole.shape, generator=generator)]
    whole = torch.where(torch.rand(whole.shape, generator=generator) < 0.5, ties, whole)
    x = whole[:, :cols]
    packed, meta, packed_t, meta_t, masks = ops.sparse24_sparsify_both_ways(x, algorithm)
    mask = reference_mask(x, algorithm)
    assert torch.equal(mask_of(masks, rows, cols), mask)
    dense = torch.where(mask, x, torch.zeros((), dtype=dtype))
    assert same(unpacked(packed, meta, rows, cols), dense)
    assert same(unpacked(packed_t, meta_t, cols, rows), dense.t())
    assert same(ops.sparse24_unpack(packed, meta, rows, cols), dense)
    for tile_rows in (mask, mask.t()):  # at most two in any four neighbours
        wide = F.pad(tile_rows.int(), (0, -tile_rows.shape[1] % 4))
        assert wide.numel() == 0 or wide.unflatten(1, (-1, 4)).sum(-1).max() <= 2
    indices = words_of(meta)
    first, second = (torch.stack([indices >> (4 * i + s) & 3 for i in range(4)]) for s in (0, 2))
    assert bool((first < second).all())
    one, one_meta = ops.sparse24_sparsify(x, algorithm)
    assert same(one, packed) and torch.equal(one_meta, meta)
    assert all(
        same(a.double(), b.double())
        for a, b in zip(ops.sparse24_apply(x, masks), (packed, meta, packed_t, meta_t), strict=True)
    )
    if algorithm != "causal1122":
        return
    below = x.clone()
    if rows > 4:
        below[4:] = -below[4:]
        again = mask_of(ops.sparse24_sparsify_both_ways(below, algorithm)[4], rows, cols)
        assert torch.equal(again[:4], mask[:4])
    if rows >= 4:  # no row looks down
        below[3] = below[3].neg()
        again = mask_of(ops.sparse24_sparsify_both_ways(below, algorithm)[4], rows, cols)
        assert torch.equal(again[:3], mask[:3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_2d(dtype):
    x = random((512, 256), dtype)
    mask = ops.sparse24_largest_mask_2d(x)
    assert mask.dtype == dtype
    assert torch.equal(mask.bool(), mask_of(ops.sparse24_sparsify_both_ways(x)[4], 512, 256))
    assert torch.equal(mask.bool()[:64], reference_mask(x[:64]))
    for n in (0, 3, 8):
        other = ops.sparse24_largest_with_Krandom_mask_2d(x, n)
        assert torch.equal(other, ops.sparse24_largest_with_Krandom_mask_2d(x, n))
        assert other.unflatten(1, (-1, 4)).sum(-1).max() <= 2 and other.t().unflatten(1, (-1, 4)).sum(-1).max() <= 2
        assert torch.equal(other, mask) == (n == 0)
    assert other.sum() > 0.85 * mask.sum()


def test_packed_words():
    """Row 3 of a mask that starts 0110 1100 1001 0110 has the nibbles 1|2<<2, 0|1<<2, 0|3<<2, 1|2<<2."""
    mask = torch.tensor([c == "1" for c in "0110110010010110"]).repeat(32, 2)
    mask[:3] = torch.tensor([True, True, False, False]).repeat(8)
    words = ops._sparse24_pack_mask(mask)
    expected = (1 | 2 << 2) | (0 | 1 << 2) << 4 | (0 | 3 << 2) << 8 | (1 | 2 << 2) << 12
    assert int(words[3, 0]) & 0xFFFF == expected and words.shape == (32, 2)
    reordered = ops._sparse24_reorder_meta(words)
    assert reordered.shape == (32, 2, 1) and torch.equal(words_of(reordered), words.int() & 0xFFFF)
    a = random((32, 32), torch.float16)
    for meta in (words, reordered):
        packed = ops._sparse24_pack_tensor_according_to_mask(a, meta)
        assert torch.equal(packed, a[mask].view(32, 16))
    b = random((32, 7), torch.float16)
    wide = torch.zeros(32, 64, dtype=torch.float16)
    wide[:, :32] = a * mask
    packed, meta, *_ = ops.sparse24_sparsify_both_ways(wide)
    result = ops._sparse24_gemm(packed, torch.cat([b, b]), meta)
    kept = unpacked(packed, meta, 32, 64).double()
    close(result, kept[:, :32] @ b.double(), kept[:, :32].abs() @ b.double().abs())
    mask[5, 4] = False
    with pytest.raises(RuntimeError, match="not enough values: row 5 has 1 in columns 4 to 7"):
        ops._sparse24_pack_mask(mask)
    mask[5, 4:8] = True
    with pytest.raises(RuntimeError, match="too many values"):
        ops._sparse24_pack_mask(mask)


def test_lone_value_goes_to_its_slot():
    x = torch.full((4, 4), -float("inf"), dtype=torch.float16)
    x[0, 0] = 1
    packed, *_ = ops.sparse24_apply(x, ops.sparse24_sparsify_both_ways(x)[4])
    mask = torch.zeros(4, 8, 8, dtype=torch.uint8)
    mask[0, 0, 0] = 1
    packed, meta, packed_t, _ = ops.sparse24_apply(x, mask)
    assert packed[0, :2].tolist() == [1, 0] and packed_t[0, :2].tolist() == [1, 0]
    mask[0, 0, 0] = 4
    x[0, 2] = 5
    assert ops.sparse24_apply(x, mask)[0][0, :2].tolist() == [0, 5]


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_dense(dtype, column_major):
    x, pattern = random((70, 45), dtype), random((70, 45), dtype, seed=1)
    x[3, 4], x[5, 6] = float("inf"), float("nan")
    masks = ops.sparse24_sparsify_both_ways(pattern)[4]
    mask = mask_of(masks, 70, 45)
    given = x.t().contiguous().t() if column_major else x
    zeros = ops.sparse24_apply_dense_output(given, masks)
    assert same(zeros, torch.where(mask, x, torch.zeros((), dtype=dtype))) and zeros.is_contiguous()
    both = ops.sparse24_apply_dense_output(given, masks, 0.5, 2.0)
    assert same(both, torch.where(mask, 2 * x, x / 2))


# ---- products ----
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype, backend):
    size = (256, 128) if backend == "cusparselt" else (250, 125)
    a = random(size, dtype)
    s = sparsify24(a, backend=backend)
    dense = a * reference_mask(a).to(dtype)
    assert torch.equal(s.to_dense(), dense) and torch.equal(s.t().to_dense(), dense.t())
    for n in (8, 24) if backend == "cusparselt" else (1, 7, 13, 26, 48, 63):
        b, c = random((size[1], n), dtype, 1), random((n, size[0]), dtype, 2)
        for left, right in ((dense, b), (dense, random((n, size[1]), dtype, 3).t())):
            close(s @ right, left.double() @ right.double(), left.double().abs() @ right.double().abs())
            transposed = right.t() @ s.t()
            assert torch.equal(transposed, (s @ right).t()) and transposed.is_contiguous()
        close(c @ s, c.double() @ dense.double(), c.double().abs() @ dense.double().abs())
        close(s.t() @ c.t(), dense.t().double() @ c.t().double(), dense.t().double().abs() @ c.t().double().abs())


def test_products_are_as_exact_as_dense_ones():
    for dtype, n in itertools.product((torch.bfloat16, torch.float16), (4, 40)):
        a, b = random((256, 1024), dtype), random((1024, n), dtype, 1)
        s = sparsify24(a)
        dense = s.to_dense()
        exact = dense.double() @ b.double()
        ours, plain = ((r.double() - exact).abs() for r in (s @ b, dense @ b))
        assert ours.max() <= 1.01 * plain.max() and ours.mean() <= 1.01 * plain.mean()
        assert torch.equal(s @ b, s @ b)


@pytest.mark.parametrize("rows", [1, 8, 26, 31, 32, 48, 63, 65])
def test_linear_takes_any_rows(rows):
    w, bias = random((96, 70)), random((96,), seed=2)
    for shape in ((rows, 70), (2, rows, 70), (70,)):
        x = random(shape, seed=1)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                s = sparsify24(w)
                expected = F.linear(x.double(), s.to_dense().double())
                if len(shape) > 1:
                    close(F.linear(x, s), expected, F.linear(x.double().abs(), s.to_dense().double().abs()))
        layer = Linear24(70, 96)
        layer.weight.data, layer.bias.data = w, bias
        terms = F.linear(x.double().abs(), w.double().abs(), bias.double().abs())
        close(layer(x), expected + bias, terms)


def test_bias_of_linear():
    w, x, bias = random((128, 256)), random((3, 5, 256)), random((128,))
    with pytest.raises(NotImplementedError, match='backend="cusparselt"'):
        F.linear(x, sparsify24(w), bias)
    dense = sparsify24(w, backend="cusparselt").to_dense().double()
    for context in (torch.enable_grad, torch.inference_mode):
        with context():
            out = F.linear(x, sparsify24(w, backend="cusparselt"), bias)
            terms = F.linear(x.double().abs(), dense.abs(), bias.double().abs())
            close(out, F.linear(x.double(), dense, bias.double()), terms)


# ---- gradients ----
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients(gradient, backend, compiled):
    # PyTorch's compiler has no sparse gradients of a graph's inputs: there it meets a product first.
    through = compiled and gradient == "24sparse"

    def call(x, b):
        x = x @ torch.eye(256, dtype=x.dtype) if through else x
        return sparsify24(x, gradient=gradient, backend=backend) @ b

    function = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
    for n in (8, 16, 24):
        x, b = random((128, 256), torch.float64, n, True), random((256, n), torch.float64, 1, True)
        out = function(x, b)
        grad = random(out.shape, torch.float64, 2)
        dx, db = torch.autograd.grad(out, (x, b), grad)
        mask = reference_mask(x) if n == 8 else (sparsify24(x).to_dense() != 0)
        assert isinstance(dx, Sparse24Tensor) == (gradient == "24sparse" and not through)
        full = grad @ b.t()
        expected = full if gradient == "ste" else full * mask
        assert torch.allclose(dx.to_dense() if isinstance(dx, Sparse24Tensor) else dx, expected, atol=1e-12)
        assert torch.allclose(db, (x * mask).t() @ grad, atol=1e-12)


def test_ste_factors():
    x = random((64, 64), requires_grad=True)
    mask = reference_mask(x)
    grad = random((64, 8), seed=1)
    b = random((64, 8), seed=2)
    full = grad @ b.t()
    (dx,) = torch.autograd.grad(sparsify24_ste(x, bw_mul0=0.5, bw_mul1=2.0) @ b, x, grad)
    assert torch.allclose(dx, torch.where(mask, 2 * full, full / 2), atol=1e-5)
    (dx,) = torch.autograd.grad(sparsify24_ste(x) @ b, x, grad)
    assert torch.allclose(dx, full, atol=1e-5)


@pytest.mark.parametrize("layer", ["linear", "activated"])
def test_gradcheck(layer):
    x, w, bias = (random(s, torch.float64, i, True) for i, s in enumerate([(2, 5, 9), (7, 9), (7,)]))
    mask = reference_mask(w).double()
    if layer == "linear":
        # With the gradient of what was kept: as a function of x, bias and the masked weight.
        assert torch.autograd.gradcheck(lambda x, b: ops.sparse24_linear(x, w.detach(), b), (x, bias))
        (dw,) = torch.autograd.grad(ops.sparse24_linear(x, w, bias).square().sum(), w)
        (expected,) = torch.autograd.grad(F.linear(x, w * mask, bias).square().sum(), w)
        assert torch.allclose(dw, expected)
        (dw,) = torch.autograd.grad(ops.sparse24_linear(x, w, bias, "", "ste").square().sum(), w)
        assert (dw != 0).all()
    else:
        for activation in ("relu", "squared_relu", "gelu", "gelu_exact"):
            f = lambda z, w, b: ops.sparse24_activated_linear(z, w, b, activation)  # noqa: B023, E731
            assert torch.autograd.gradcheck(f, (x, w, bias), atol=1e-6)


@pytest.mark.parametrize("gradient", ["24sparse", "24dense"])
@pytest.mark.parametrize("activation", ["relu", "squared_relu", "gelu", "gelu_exact", "swiglu"])
def test_activation(activation, gradient):
    functions = {
        "relu": torch.relu,
        "squared_relu": lambda x: torch.relu(x).square(),
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_exact": F.gelu,
    }
    x, x2, w = (random((70, 90), torch.float64, i, True) for i in range(3))
    dense = F.silu(x) * x2 if activation == "swiglu" else functions[activation](x)
    out = sparsify24_activation(x, activation, x2 if activation == "swiglu" else None, gradient=gradient)
    mask = reference_mask(dense)
    assert torch.allclose(out.to_dense(), dense * mask)
    inputs = (x, x2) if activation == "swiglu" else (x,)
    results = torch.autograd.grad(out @ w.t(), inputs, torch.ones(70, 70).double())
    expected = torch.autograd.grad((dense * mask) @ w.t(), inputs, torch.ones(70, 70).double())
    for result, other in zip(results, expected, strict=True):
        assert isinstance(result, Sparse24Tensor) == (gradient == "24sparse")
        assert torch.allclose(result.to_dense() if gradient == "24sparse" else result, other)


# ---- a pattern for others ----
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_like(backend, transposed):
    shape = (128, 256)
    pattern = sparsify24(random(shape), backend=backend)
    mask = reference_mask(random(shape))
    if transposed:
        pattern, mask, shape = pattern.t(), mask.t(), shape[::-1]
    x = random(shape, seed=1, requires_grad=True)
    out = sparsify24_like(x, pattern)
    assert type(out) is type(pattern) and torch.equal(out.to_dense(), x * mask)
    dense = sparsify24_like(x, pattern, backend="dense", gradient="24dense")
    assert type(dense) is torch.Tensor and torch.equal(dense, x * mask)
    assert torch.equal(sparsify24_like(x, pattern, out_dense=True), dense)
    (dx,) = torch.autograd.grad(dense.sum(), x)
    assert torch.equal(dx, mask.float())
    b = random((shape[1], 8), seed=3)
    for gradient in GRADIENTS:
        (dx,) = torch.autograd.grad((sparsify24_like(x, pattern, gradient=gradient) @ b).sum(), x)
        full = torch.ones(shape[0], 8) @ b.t()
        dx = dx.to_dense() if isinstance(dx, Sparse24Tensor) else dx
        assert torch.allclose(dx, full if gradient == "ste" else full * mask, atol=1e-5)
    if backend == "cutlass" and not transposed:
        assert out.meta is pattern.meta and out.meta_t is pattern.meta_t


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_pointwise_functions(gated, compiled):
    """Activations sparsified before their function: forward and gradients against the dense mask."""
    x = random((40, 32), torch.float64, 0, True)
    w1, w2, w3 = (random(s, torch.float64, i, True) for i, s in enumerate([(64, 32), (64, 32), (16, 64)], 1))

    def call(x):
        hidden = sparsify24(F.linear(x, w1))
        hidden = F.silu(hidden) * F.linear(x, w2) if gated else F.relu(F.gelu(hidden, approximate="tanh"))
        return F.linear(hidden, w3)

    def plain(x):
        hidden = F.linear(x, w1)
        hidden = hidden * reference_mask(hidden)
        hidden = F.silu(hidden) * F.linear(x, w2) if gated else F.relu(F.gelu(hidden, approximate="tanh"))
        return F.linear(hidden, w3)

    function = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
    out, expected = function(x), plain(x)
    assert torch.allclose(out, expected)
    inputs = (x, w1, w3, *((w2,) if gated else ()))
    grad = random(out.shape, torch.float64, 9)
    for result, other in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert torch.allclose(result, other)


def test_masks_must_agree():
    a, b = sparsify24(random((64, 64))), sparsify24(random((64, 64), seed=1))
    for function in (torch.add, torch.mul):
        with pytest.raises(ValueError, match="operand 1 has another mask"):
            function(a, b)
    other = sparsify24_like(random((64, 64), seed=1), a)
    assert torch.equal((a + other).to_dense(), a.to_dense() + other.to_dense())
    assert torch.equal(torch.add(a, other, alpha=2).to_dense(), a.to_dense() + 2 * other.to_dense())
    assert torch.equal((a * other).to_dense(), a.to_dense() * other.to_dense())
    assert torch.equal((a * 2).to_dense(), a.to_dense() * 2)
    assert torch.equal((a.t() * random((64, 64))).to_dense(), a.t().to_dense() * random((64, 64)))
    with pytest.raises(ValueError, match="operand 1 is dense"):
        a + random((64, 64))
    with pytest.raises(ValueError, match="would fill dropped places"):
        a + 1
    with pytest.raises(NotImplementedError, match=r"aten\.relu"):
        F.relu(sparsify24(random((128, 128)), backend="cusparselt"))


# ---- a tensor like others ----
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies(backend):
    s = sparsify24(random((128, 128), torch.bfloat16), backend=backend)
    buffer = io.BytesIO()
    torch.save({"s": s}, buffer)
    buffer.seek(0)
    cls = {"cutlass": Sparse24TensorCutlass, "cusparselt": Sparse24TensorCuSparseLt}[backend]
    others = [
        s.clone(),
        copy.deepcopy(s),
        pickle.loads(pickle.dumps(s)),
        torch.load(buffer)["s"],
        s.to("cpu"),
        s.detach(),
    ]
    for other in others:
        assert type(other) is cls and other.dtype == torch.bfloat16
        assert torch.equal(other.to_dense(), s.to_dense()) and torch.equal(other.t().to_dense(), s.to_dense().t())
    assert torch.equal(s.t().clone().t().to_dense(), s.to_dense())
    assert torch.equal(s.float().to_dense(), s.to_dense().float())
    assert torch.equal(s.view(128, 128).to_dense(), s.to_dense()) and torch.equal(
        s.view(-1, 128).to_dense(), s.to_dense()
    )
    assert repr(s) == f"{cls.__name__}(shape=(128, 128))" and isinstance(s, xformers.ops.Sparse24Tensor)
    assert s.detach().requires_grad_().requires_grad and sparsify24(s) is s
    assert torch.equal(s._sp24_to_dense(), s.to_dense())
    x = random((128, 128), requires_grad=True)
    (dx,) = torch.autograd.grad(sparsify24(x, gradient="24dense", backend=backend).to_dense().sum(), x)
    assert torch.equal(dx, reference_mask(x).float())


def test_one_pattern_both_ways():
    a = random((64, 96), torch.float32)  # without ties, the transpose keeps the same values
    s, turned = sparsify24(a), sparsify24(a.t().contiguous())
    assert torch.equal(s.to_dense(), turned.to_dense().t())
    assert torch.equal(s.packed_t, turned.packed) and torch.equal(s.meta_t, turned.meta)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend, gradient):
    w, x = random((128, 256), requires_grad=True), random((65 if backend == "cutlass" else 64, 256), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        s = sparsify24(w, gradient=gradient, backend=backend)
        out = F.linear(x, s)
    assert s.dtype == out.dtype == torch.bfloat16
    dw, dx = torch.autograd.grad(out.sum(), (w, x))
    assert dw.dtype == dx.dtype == torch.float32
    assert ops.sparse24_sparsify_both_ways(w.detach())[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.sparse24_sparsify_both_ways(w.detach())[0].dtype == torch.bfloat16


def test_meta_tensors():
    s = sparsify24(torch.randn(70, 90, device="meta"))
    assert s.shape == (70, 90) and s.t().shape == (90, 70) and s.packed.shape == (96, 64)
    assert s.threads_masks.shape == (12, 16, 8) and s.meta.shape == (96, 2, 4)
    assert (s @ torch.randn(90, 3, device="meta")).shape == (70, 3)
    q = sparsify24(torch.randn(128, 256, device="meta", dtype=torch.float16), backend="cusparselt")
    assert q.packed.shape == (128 * 256 * 9 // 16,) and q.meta.shape == (1, 8, 256)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_empty(shape):
    x = random(shape, requires_grad=True)
    s = sparsify24(x, gradient="24dense")
    b = random((shape[1], 3), seed=1)
    assert torch.equal(s.to_dense(), x) and torch.equal(s @ b, x.detach() @ b)
    (s @ b).sum().backward()
    assert x.grad.shape == shape


# ---- operators ----
def arguments():
    x, b = random((40, 70), torch.float32), random((70, 5), seed=1)
    packed, meta, packed_t, meta_t, masks = ops.sparse24_sparsify_both_ways(x)
    mask = torch.tensor([True, False, False, True]).repeat(32, 16)
    square = random((64, 64))
    one, one_meta = ops.sparse24_sparsify(square)
    return {
        "sparse24_sparsify_both_ways": (x,),
        "sparse24_sparsify": (x, "causal1122"),
        "sparse24_apply": (x, masks),
        "sparse24_apply_dense_output": (x, masks, 0.5),
        "sparse24_unpack": (packed, meta, 40, 70),
        "sparse24_activation": (x, "gelu"),
        "sparse24_activation_backward": (x, x, masks, "swiglu", x),
        "sparse24_product": (packed, meta, b, 40, 70, random((40,)), True, True),
        "_sparse24_gemm": (one, square, one_meta),
        "sparse24_largest_mask_2d": (square,),
        "sparse24_largest_with_Krandom_mask_2d": (square, 2),
        "_sparse24_pack_mask": (mask,),
        "_sparse24_reorder_meta": (ops._sparse24_pack_mask(mask),),
        "_sparse24_pack_tensor_according_to_mask": (square[:32], ops._sparse24_pack_mask(mask)),
        "sparse24_linear": (random((3, 70), requires_grad=True), random((9, 70), requires_grad=True), random((9,))),
        "sparse24_activated_linear": (random((3, 70), requires_grad=True), random((9, 70), requires_grad=True)),
    }


@pytest.mark.parametrize("name", sorted(arguments()))
def test_opcheck(name):
    opcheck(getattr(ops, name).default, arguments()[name])


def test_registered():
    from xformers.ops.common import OPERATORS_REGISTRY

    names = {f"{op.OPERATOR_CATEGORY}.{op.NAME}" for op in OPERATORS_REGISTRY}
    for name in ("sparse24_sparsify_both_ways", "sparse24_apply", "sparse24_apply_dense_output", "_sparse24_gemm"):
        assert f"sp24.{name}" in names
    assert f"sp24._cslt_sparse_mm@{sp24._cusplt_version_str}" in names
    assert len(sp24._cusplt_version) == 3 and (sp24._get_cusparselt_lib() is None or sp24._get_cusparselt_lib())
    assert sp24._has_cusparseLt() in (False, True)


# ---- layers ----
@pytest.mark.parametrize("algo", ALGORITHMS[1:])
def test_linear24(algo):
    layer = Linear24(70, 90, algo=algo)
    layer.load_state_dict(torch.nn.Linear(70, 90).state_dict())
    x = random((4, 5, 70), requires_grad=True)
    plain = F.linear(x, layer.weight * reference_mask(layer.weight, algo), layer.bias)
    out = layer(x)
    assert torch.allclose(out, plain, atol=1e-5)
    inputs = (x, layer.weight, layer.bias)
    for a, b in zip(
        torch.autograd.grad(out.sin().sum(), inputs), torch.autograd.grad(plain.sin().sum(), inputs), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4)
    dense_bytes = layer.weight.numel() * 2
    half = Linear24(1024, 512, algo=algo, dtype=torch.bfloat16)
    dense_bytes = half.weight.numel() * half.weight.element_size()
    half.freeze()
    assert sum(t.numel() * t.element_size() for t in (half.packed, half.meta)) <= 0.57 * dense_bytes
    layer.freeze()
    assert torch.equal(layer(x), out) and "weight" not in layer.state_dict()


LINEAR24_EXAMPLES = Path(__file__).resolve().parents[1] / "cases" / "linear24_examples.json"


@pytest.mark.parametrize("row", range(4))
def test_both_languages_agree(row):
    """With numbers that tests/ops/linear24_test.cpp reads too."""
    example = json.loads(LINEAR24_EXAMPLES.read_text())[row]
    sizes = {"Linear24": (6, 5), "MLP24": (6, 8, 3)}[example["module"]]
    module = {"Linear24": Linear24, "MLP24": MLP24}[example["module"]](*sizes, **example["options"])
    module.load_state_dict({name: torch.tensor(values) for name, values in example["state"].items()})
    assert torch.allclose(module(torch.tensor(example["x"])), torch.tensor(example["out"]), 1e-4, 1e-5)


@pytest.mark.parametrize("sparsity", ["weights", "activations"])
def test_mlp24(sparsity):
    mlp = MLP24(32, 64, 16, activation="squared_relu", sparsity=sparsity)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 9, 17):
        x = random((2, rows, 32), seed=rows, requires_grad=True)
        fc1, fc2 = mlp.fc1.weight, mlp.fc2.weight
        if sparsity == "weights":
            fc1, fc2 = fc1 * reference_mask(fc1), fc2 * reference_mask(fc2)
        hidden = torch.relu(F.linear(x, fc1, mlp.fc1.bias)).square()
        if sparsity == "activations":
            hidden = hidden * reference_mask(hidden.flatten(0, 1)).view_as(hidden)
        plain = F.linear(hidden, fc2, mlp.fc2.bias)
        inputs = (x, *mlp.parameters())
        for out in (mlp(x), compiled(x)):
            assert torch.allclose(out, plain, atol=1e-5)
            results = torch.autograd.grad(out.sin().sum(), inputs)
            expected = torch.autograd.grad(plain.sin().sum(), inputs, retain_graph=True)
            for a, b in zip(results, expected, strict=True):
                assert torch.allclose(a, b, atol=1e-4)


# ---- bad input ----
def sparse(*shape, **arguments):
    return sparsify24(random(shape), **arguments)


BAD = {
    "dimensions": (
        RuntimeError,
        "sparsify24: x has 3 dimensions, expected 2.  Fix: flatten the leading ones, or use Linear24.",
        lambda: sparsify24(random((2, 3, 4))),
    ),
    "stride": (
        RuntimeError,
        "sparsify24: x.stride(1) is 32, expected 1.  Fix: sparsify x.t() and transpose the result.",
        lambda: sparsify24(random((64, 32)).t()[:32]),
    ),
    "algorithm": (
        RuntimeError,
        'sparsify24: Unknown algorithm "abs", expected one of "", "largest_values_greedy", '
        '"largest_abs_values_greedy", "causal1122".',
        lambda: sparsify24(random((4, 4)), "abs"),
    ),
    "backend": (
        RuntimeError,
        'Unknown backend "vendor", expected "cutlass" or "cusparselt".',
        lambda: ops.sparse24_sparsify_both_ways(random((4, 4)), "", "vendor"),
    ),
    "backend of the function": (AssertionError, "vendor", lambda: sparsify24(random((4, 4)), backend="vendor")),
    "gradient": (
        ValueError,
        'gradient is "dense", expected one of "24sparse", "24dense", "ste"',
        lambda: sparsify24(random((4, 4)), gradient="dense"),
    ),
    "square": (RuntimeError, "multiples of 128", lambda: sparsify24(random((64, 128)), backend="cusparselt")),
    "masks": (
        RuntimeError,
        "sparse24_apply: threads_masks is [8, 16, 8], expected [16, 16, 8] for input [128, 128].",
        lambda: ops.sparse24_apply(random((128, 128)), torch.zeros(8, 16, 8, dtype=torch.uint8)),
    ),
    "order": (
        RuntimeError,
        "expected row- or column-major order",
        lambda: ops.sparse24_apply_dense_output(random((8, 8, 2))[..., 0], torch.zeros(4, 8, 8, dtype=torch.uint8)),
    ),
    "random": (
        RuntimeError,
        "n is 9, expected 0 <= n <= 8",
        lambda: ops.sparse24_largest_with_Krandom_mask_2d(random((4, 4)), 9),
    ),
    "fours": (RuntimeError, "expected multiples of 4", lambda: ops.sparse24_largest_mask_2d(random((4, 6)))),
    "aligned": (
        NotImplementedError,
        "Sparse24TensorCuSparseLt @: the dense matrix is [128, 4], its second dimension must be "
        'aligned to 8.  Fix: pad it, or use backend="cutlass".',
        lambda: sparse(128, 128, backend="cusparselt") @ random((128, 4)),
    ),
    "data type": (NotImplementedError, "the same data type", lambda: sparse(64, 64) @ random((64, 8), torch.float64)),
    "both sparse": (ValueError, "not supported by the hardware", lambda: sparse(64, 64) @ sparse(64, 64)),
    "vector": (NotImplementedError, "", lambda: sparse(64, 64) @ random((64,))),
    "sizes": (NotImplementedError, "as many columns as rows", lambda: sparse(64, 32) @ random((64, 8))),
    "another function": (NotImplementedError, "aten.sum.default is not supported", lambda: sparse(64, 64).sum()),
    "view": (NotImplementedError, "expected its own shape", lambda: sparse(64, 64).view(32, 128)),
    "pattern": (
        ValueError,
        "pattern is a Tensor, expected a Sparse24Tensor",
        lambda: sparsify24_like(random((4, 4)), random((4, 4))),
    ),
    "bias of a matrix": (
        NotImplementedError,
        "the bias has 2 dimensions, expected 1",
        lambda: torch.addmm(random((8, 128)), random((8, 128)), sparse(128, 128, backend="cusparselt")),
    ),
    "first matrix": (
        NotImplementedError,
        "the first matrix is sparse",
        lambda: torch.addmm(random((8,)), sparse(128, 128, backend="cusparselt"), random((128, 8))),
    ),
    "activation": (RuntimeError, 'activation is "tanh"', lambda: sparsify24_activation(random((4, 4)), "tanh")),
    "sparsity": (ValueError, 'sparsity is "all"', lambda: MLP24(4, 4, sparsity="all")),
    "layer": (
        ValueError,
        "weight.size(1) is 5, expected 4",
        lambda: ops.sparse24_linear(random((2, 4)), random((3, 5))),
    ),
    "product": (
        ValueError,
        "b.size(0) is 5, expected 64",
        lambda: ops.sparse24_product(*ops.sparse24_sparsify(random((64, 64))), random((5, 2)), 64, 64),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    error, text, call = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
