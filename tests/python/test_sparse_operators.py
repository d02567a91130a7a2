"""The operators of compressed sparse rows against dense products in fp64: values, gradients, patterns of all kinds."""

import os

import pytest
import torch
import torch._dynamo.testing
from blocks_reference import DTYPES, TOLERANCE, random, uniform
from devices import on_each_device  # noqa: F401
from torch.library import opcheck

from xformers import operators as ops

SIZES = [(17, 30, 32), (30, 17, 17), (32, 32, 30)]  # rows, columns, depth or width
COUNTS = [0, 4, 13, 16, 20, 36]


def pattern(rows, columns, nnz, seed=0):
    """nnz places anywhere (fewer where a matrix is smaller), the last rows empty."""
    places = uniform((rows - 2) * columns, seed=seed).argsort()[:nnz].sort().values
    offsets = torch.searchsorted(places, torch.arange(rows + 1) * columns).int()
    return offsets, (places % columns).int()


def rows_of(offsets):
    return torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())


def dense_of(values, offsets, columns, n):
    dense = torch.zeros(len(values), len(offsets) - 1, n, dtype=values.dtype)
    return dense.index_put((torch.arange(len(values))[:, None], rows_of(offsets), columns.long()), values)


def sddmm(a, b, offsets, columns, **options):
    return ops.sddmm_sputnik(a, b, offsets, offsets, columns, **options)


def spmm(values, b, offsets, columns, **options):
    return ops.spmm_sputnik(b, offsets, values, offsets, columns, options.pop("m", len(offsets) - 1), **options)


def softmax(values, offsets, columns):
    return ops.sparse_softmax_sputnik(len(offsets) - 1, 0, offsets, values, offsets, columns)


def reference_softmax(values, offsets, columns, n):
    dense = dense_of(values.double(), offsets, columns, n)
    visible = dense_of(torch.ones_like(values.double()), offsets, columns, n) > 0
    weights = dense.masked_fill(~visible, -torch.inf).softmax(-1)
    return weights[:, rows_of(offsets), columns.long()]


def assert_near(got, expected, atol, name=""):
    """One rounding of the result, and atol for fp32 sums."""
    bound = atol + 1.01 * TOLERANCE[got.dtype] * expected.detach().abs().double()
    assert got.shape == expected.shape
    assert ((got.double() - expected.double()).abs() <= bound).all(), name


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("nnz", COUNTS)
@pytest.mark.parametrize("m, n, k", SIZES)
def test_products_and_their_gradients(m, n, k, nnz, batch):
    offsets, columns = pattern(m, n, nnz)
    a, b = random((batch, m, k), torch.float32, 1, True), random((batch, n, k), torch.float32, 2, True)
    values = sddmm(a, b, offsets, columns)
    wide = [t.detach().double().requires_grad_() for t in (a, b)]
    expected = (wide[0] @ wide[1].mT)[:, rows_of(offsets), columns.long()]
    # Sums of 32 products of numbers below 4: the bound of the specification, in units of what is added.
    scale = float((a.detach().abs() @ b.detach().abs().mT).max())
    assert_near(values, expected, 1e-6 * scale)
    grad = random(values.shape, torch.float32, 3)
    values.backward(grad)
    expected.backward(grad.double())
    for got, right in zip((a, b), wide, strict=True):
        assert_near(got.grad, right.grad, 1e-6 * scale)

    weights = random((batch, len(columns)), torch.float32, 4, True)
    dense = random((batch, n, k), torch.float32, 5, True)
    out = spmm(weights, dense, offsets, columns)
    wide = [t.detach().double().requires_grad_() for t in (weights, dense)]
    expected = dense_of(wide[0], offsets, columns, n) @ wide[1]
    assert_near(out, expected, 1e-6 * scale)
    grad = random(out.shape, torch.float32, 6)
    out.backward(grad)
    expected.backward(grad.double())
    for got, right in zip((weights, dense), wide, strict=True):
        assert_near(got.grad, right.grad, 1e-6 * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nnz", COUNTS)
def test_softmax(nnz, dtype):
    offsets, columns = pattern(17, 30, nnz)
    values = random((8, len(columns)), dtype, 1, True)
    out = softmax(values, offsets, columns)
    wide = values.detach().double().requires_grad_()
    expected = reference_softmax(wide, offsets, columns, 30)
    arithmetic = 1e-6 if dtype != torch.float64 else 1e-14
    assert_near(out, expected, arithmetic)
    grad = random(out.shape, dtype, 2)
    out.backward(grad)
    y = out.detach().double()  # the gradient is that of the result, rounded
    sums = torch.zeros(8, 17, dtype=torch.float64).index_add(1, rows_of(offsets), y * grad.double())
    assert_near(values.grad, y * (grad.double() - sums[:, rows_of(offsets)]), 2 * arithmetic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_summed_wide(dtype):
    """Rows of ones and small numbers, which 16-bit sums would lose."""
    offsets, columns = pattern(40, 600, 9000)
    a, b = random((2, 40, 500), dtype, 1), random((2, 600, 500), dtype, 2)
    arithmetic = 1e-15 if dtype == torch.float64 else 1e-6
    expected = (a.double() @ b.double().mT)[:, rows_of(offsets), columns.long()]
    scale = float((a.abs().double() @ b.abs().double().mT).max())
    assert_near(sddmm(a, b, offsets, columns), expected, arithmetic * scale)
    values = random((2, len(columns)), dtype, 3)
    wide = dense_of(values.double(), offsets, columns, 600)
    scale = float((wide.abs() @ b.abs().double()).max())
    assert_near(spmm(values, b, offsets, columns), wide @ b.double(), arithmetic * scale)
    grad = random((2, 40, 500), dtype, 4)
    scale = float((wide.abs().mT @ grad.abs().double()).max())
    turned = spmm(values, grad, offsets, columns, m=600, transposed=True)
    assert_near(turned, wide.mT @ grad.double(), arithmetic * scale)


def test_three_names_of_one_product(monkeypatch):
    offsets, columns = pattern(17, 30, 36)
    a, b = random((3, 17, 8), torch.float32), random((3, 30, 8), torch.float32, 1)
    expected = sddmm(a, b, offsets, columns)
    assert torch.equal(ops.csr_sddmm(a, b, offsets, offsets, columns), expected)
    rows = rows_of(offsets).int()
    assert torch.equal(ops.coo_sddmm(a, b, offsets, rows, columns), expected)
    order = uniform(36, seed=1).argsort()  # rows need not ascend
    assert torch.equal(ops.coo_sddmm(a, b, offsets, rows[order], columns[order]), expected[:, order])
    monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")  # GPUs look at patterns in this mode alone
    with pytest.raises(ValueError, match="row_offsets"):
        ops.coo_sddmm(a, b, offsets, rows + 1 + 16 * (rows == rows.max()).int(), columns)


def test_values_or_matrices_of_batch_one_serve_all():
    offsets, columns = pattern(17, 30, 36)
    for batches in ((1, 5), (5, 1)):
        values = random((batches[0], 36), torch.float64, 1, True)
        b = random((batches[1], 30, 7), torch.float64, 2, True)
        out = spmm(values, b, offsets, columns)
        expected = dense_of(values, offsets, columns, 30) @ b
        torch.testing.assert_close(out, expected)
        grad = random(out.shape, torch.float64, 3)
        got = torch.autograd.grad(out, (values, b), grad)
        for x, y in zip(got, torch.autograd.grad(expected, (values, b), grad), strict=True):
            torch.testing.assert_close(x, y)


def test_strides_and_given_transposition():
    offsets, columns = pattern(17, 30, 36)
    transposed = ops.csr_transpose(offsets, columns, 30)
    a, b = random((6, 17, 2), torch.float64).permute(2, 1, 0), random((2, 30, 12), torch.float64, 1)[:, :, ::2]
    given = sddmm(a, b, offsets, columns, **dict(zip(("row_offsets_t", "column_indices_t", "perm"), transposed)))  # noqa: B905
    torch.testing.assert_close(given, (a @ b.mT)[:, rows_of(offsets), columns.long()])
    values = given[:1].expand(2, -1)
    torch.testing.assert_close(spmm(values, b, offsets, columns), dense_of(values, offsets, columns, 30) @ b)


def test_gradients_of_gradients():
    offsets, columns = pattern(5, 6, 9)
    a, b = random((2, 5, 3), torch.float64, 1, True), random((2, 6, 3), torch.float64, 2, True)
    values, dense = random((2, 9), torch.float64, 3, True), random((2, 6, 3), torch.float64, 4, True)
    torch.autograd.gradcheck(lambda *t: sddmm(*t, offsets, columns), (a, b))
    torch.autograd.gradgradcheck(lambda *t: sddmm(*t, offsets, columns), (a, b))
    torch.autograd.gradcheck(lambda *t: spmm(*t, offsets, columns), (values, dense))
    torch.autograd.gradgradcheck(lambda *t: spmm(*t, offsets, columns), (values, dense))
    torch.autograd.gradcheck(lambda t: softmax(t, offsets, columns), (values,))
    turned = random((2, 5, 3), torch.float64, 5, True)
    torch.autograd.gradcheck(lambda *t: spmm(*t, offsets, columns, m=6, transposed=True), (values, turned))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_with_a_dense_mask(dtype):
    a, b = random((2, 5, 8), dtype, 1, True), random((2, 8, 6), dtype, 2, True)
    mask = uniform(5, 6, seed=0) > 0.5
    for given in (mask, mask.int(), mask.expand(2, 5, 6)):
        out = ops.matmul_with_mask(a, b, given)
        assert torch.equal(out == -torch.inf, ~mask.expand(2, 5, 6))
        assert torch.equal(out[:, mask], (a @ b)[:, mask])
    grad = random((2, 5, 6), dtype, 3)
    out.backward(grad)
    kept = grad * mask
    assert torch.equal(a.grad, kept @ b.detach().mT) and torch.equal(b.grad, a.detach().mT @ kept)


def test_matmul_with_a_sparse_mask():
    visible = uniform(3, 5, 6, seed=0) > 0.6  # another pattern per element
    a = random((3, 8, 5), torch.float64, 1, True)
    b = random((3, 6, 8), torch.float64, 2, True)
    out = ops.matmul_with_mask(a.mT, b.mT, visible.to_sparse())
    assert out.layout == torch.sparse_coo and out.shape == (3, 5, 6)
    expected = torch.where(visible, a.mT @ b.mT, 0.0)
    torch.testing.assert_close(out.to_dense(), expected)
    grad = random((3, 5, 6), torch.float64, 3)
    got = torch.autograd.grad(out.to_dense(), (a, b), grad)
    for x, y in zip(got, torch.autograd.grad(expected, (a, b), grad), strict=True):
        torch.testing.assert_close(x, y)
    with pytest.raises(ValueError, match="mask is"):
        ops.matmul_with_mask(a.mT[:2], b.mT[:2], visible.to_sparse())
    with pytest.raises(RuntimeError, match=r"a is \[5, 8\]"):
        ops.matmul_with_mask(a[0].mT, b[0].mT, visible[0].to_sparse())


# ---- bad input ----
BAD_PATTERNS = {
    "descend": ([0, 3, 2, 4], [0, 1, 2, 3], "row_offsets[2] is 2, expected at least 3, the one before"),
    "first": ([1, 2, 3, 4], [0, 1, 2, 3], "row_offsets[0] is 1, expected 0"),
    "last": ([0, 2, 3, 9], [0, 1, 2, 3], "row_offsets[3] is 9, expected 4"),
    "column": ([0, 2, 3, 4], [0, 1, 5, 3], "column_indices[2] is 5, expected 0 <= index < 5"),
    "negative": ([0, 2, 3, 4], [0, 1, 2, -2147483648], "column_indices[3] is -2147483648, expected 0 <= index < 5"),
}


@pytest.mark.parametrize("name", BAD_PATTERNS)
def test_patterns_that_leave_the_matrix(name, monkeypatch):
    monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")  # GPUs look at patterns in this mode alone
    offsets, columns, message = BAD_PATTERNS[name]
    offsets, columns = torch.tensor(offsets, dtype=torch.int32), torch.tensor(columns, dtype=torch.int32)
    calls = [
        lambda: sddmm(torch.ones(1, 3, 2), torch.ones(1, 5, 2), offsets, columns),
        lambda: spmm(torch.ones(1, 4), torch.ones(1, 5, 2), offsets, columns),
        lambda: spmm(torch.ones(1, 4), torch.ones(1, 3, 2), offsets, columns, m=5, transposed=True),
        lambda: ops.csr_transpose(offsets, columns, 5),
    ]
    if name not in ("column", "negative"):
        calls.append(lambda: softmax(torch.ones(1, 4), offsets, columns))
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "Fix:" in str(error.value)


def test_sizes_that_do_not_fit():
    offsets, columns = pattern(3, 5, 4)
    a, b = torch.ones(2, 3, 2), torch.ones(2, 5, 2)
    cases = [
        (lambda: sddmm(a, b[:1], offsets, columns), "b.size(0) is 1, expected 2"),
        (lambda: sddmm(a, b[:, :, :1], offsets, columns), "b.size(2) is 1, expected 2"),
        (lambda: sddmm(a[:, :2], b, offsets, columns), "row_offsets is [4]"),
        (lambda: spmm(torch.ones(3, 4), b, offsets, columns), "b.size(0) is 2, expected 3"),
        (lambda: spmm(torch.ones(2, 3), b, offsets, columns), "values.size(1) is 3, expected 4"),
        (lambda: softmax(torch.ones(2, 3), offsets, columns), "values.size(1) is 3, expected 4"),
        (lambda: sddmm(a, b, offsets, columns, perm=columns), "the pattern by columns is given in part"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "Fix:" in str(error.value)


def test_kinds_that_do_not_fit():
    """Ranks, dtypes, layouts and devices have always been RuntimeErrors."""
    offsets, columns = pattern(3, 5, 4)
    a, b = torch.ones(2, 3, 2), torch.ones(2, 5, 2)
    cases = [
        (lambda: sddmm(a[0], b, offsets, columns), "a is [3, 2] fp32 cpu, expected [batch, rows, depth]"),
        (lambda: sddmm(a, b.double(), offsets, columns), "b.dtype is fp64, expected fp32"),
        (lambda: sddmm(a.int(), b.int(), offsets, columns), "a"),
        (lambda: sddmm(a, b, offsets.long(), columns), "row_indices is [4] int64 cpu, expected int32"),
        (lambda: sddmm(a.to_sparse(), b, offsets, columns), "a is sparse, expected a dense tensor"),
        (lambda: spmm(torch.ones(4), b, offsets, columns), "values is [4]"),
        (lambda: softmax(torch.ones(1, 4), offsets, columns.to("meta")), "column_indices"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError) as error:
            call()
        message = message.replace(" cpu", f" {a.device}")
        assert not isinstance(error.value, NotImplementedError) and message in str(error.value), str(error.value)


# ---- what PyTorch asks of operators ----
def calls():
    offsets, columns = pattern(5, 6, 9)
    transposed = ops.csr_transpose(offsets, columns, 6)
    a, b = random((2, 5, 3), torch.float32, 1, True), random((2, 6, 3), torch.float32, 2, True)
    values, grad = random((2, 9), torch.float32, 3, True), random((2, 9), torch.float32, 4)
    rows = rows_of(offsets).int()
    return {
        "sddmm_sputnik": (a, b, offsets, offsets, columns),
        "sddmm_sputnik transposition": (a, b, offsets, offsets, columns, *transposed),
        "csr_sddmm": (a, b, offsets, offsets, columns),
        "coo_sddmm": (a, b, offsets, rows, columns),
        "spmm_sputnik": (b, offsets, values, offsets, columns, 5),
        "spmm_sputnik transposed": (a, offsets, values, offsets, columns, 6, *transposed, True),
        "sparse_softmax_sputnik": (5, 6, offsets, values, offsets, columns),
        "sparse_softmax_backward_sputnik": (5, 6, offsets, values.detach(), grad, offsets, columns),
        "csr_transpose": (offsets, columns, 6),
        "csr_to_dense": (values, offsets, columns, 6),
        "matmul_with_mask": (a, b.mT, torch.ones(5, 6)),
    }


CALLS = list(calls())


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    opcheck(getattr(torch.ops.xformers, name.split()[0]).default, calls()[name])


def test_compiles_once_for_all_sizes():
    def attention(q, k, v, offsets, columns):
        weights = softmax(sddmm(q, k, offsets, columns), offsets, columns)
        return spmm(weights, v, offsets, columns)

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=counter)
    for batch, rows, nnz in ((2, 10, 17), (3, 12, 23), (4, 14, 19)):  # no two sizes alike
        offsets, columns = pattern(rows, 8, nnz)
        q = random((batch, rows, 5), torch.float32, 1, True)
        k, v = random((batch, 8, 5), torch.float32, 2), random((batch, 8, 5), torch.float32, 3)
        grad = random((batch, rows, 5), torch.float32, 4)
        results = []
        for function in (attention, compiled):
            q.grad = None
            out = function(q, k, v, offsets, columns)
            out.backward(grad)
            results.append((out.detach(), q.grad))
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert counter.frame_count == 1


def test_autocast_keeps_the_dtype_of_values(device):
    offsets, columns = pattern(5, 6, 9)
    a, b = random((2, 5, 3), torch.float32, 1), random((2, 6, 3), torch.bfloat16, 2)
    with torch.autocast(device, torch.bfloat16):
        values = sddmm(a, b, offsets, columns)
        weights = softmax(values, offsets, columns)
        out = spmm(weights, b, offsets, columns)
    assert values.dtype == weights.dtype == out.dtype == torch.float32
    assert torch.equal(values, sddmm(a, b.float(), offsets, columns))


def test_every_instruction_set_gives_the_same(device, monkeypatch):
    if device != "cpu":
        pytest.skip("of processors")
    offsets, columns = pattern(30, 64, 700)
    for dtype in DTYPES:
        values, b = random((2, 700), dtype, 1), random((2, 64, 40), dtype, 2)
        outs = []
        for isa in ops.cpu_isas():
            monkeypatch.setitem(os.environ, "XFORMERS_CPU_ISA", isa)
            outs.append(spmm(softmax(values, offsets, columns), b, offsets, columns).double())
        for out in outs[1:]:
            torch.testing.assert_close(out, outs[0], atol=8 * TOLERANCE[dtype], rtol=0)


def test_other_devices_are_refused_in_one_sentence(device):
    """What the operator does where the dispatcher finds CUDA tensors, without having any."""
    offsets, columns = pattern(5, 6, 9)
    if device != "cpu" or torch._C._dispatch_has_kernel_for_dispatch_key("xformers::sddmm_sputnik", "CUDA"):
        pytest.skip("this build has kernels for CUDA")
    for name, arguments in calls().items():
        operator = getattr(torch.ops.xformers, name.split()[0]).default
        if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"):
            continue  # made of the others
        detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        with pytest.raises(NotImplementedError, match="no kernels on other devices yet.*Fix:"):
            operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *detached)
