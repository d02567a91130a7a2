"""SparseCSRTensor, SparseCS and the helpers of patterns, beside dense tensors."""

import copy
import io

import pytest
import torch
import torch._dynamo
from blocks_reference import DTYPES, random, uniform
from devices import on_each_device  # noqa: F401
from torch import nn
from xformers.components.attention._sputnik_sparse import SparseCS
from xformers.sparse import SparseCSRTensor, utils

from xformers.ops import masked_matmul

ATOL = 1e-5


def visible(m, n, density=0.4, seed=0):
    mask = uniform(m, n, seed=seed) < density
    mask[min(2, m - 1)] = False  # a row without values
    return mask


def dense_and_sparse(batch=3, m=7, n=9, dtype=torch.float32, seed=0, grad=False):
    mask = visible(m, n, seed=seed)
    dense = torch.where(mask, random((batch, m, n), dtype, seed + 1), 0)
    sparse = SparseCSRTensor.from_dense(dense)
    return mask, dense.requires_grad_(grad), sparse.requires_grad_(grad)


def close(got, expected):
    torch.testing.assert_close(got.to_dense() if isinstance(got, SparseCSRTensor) else got, expected, atol=ATOL, rtol=0)


# ---- making one ----
@pytest.mark.parametrize("nnz", [0, 1, 3, 4, 5, 13])
def test_any_number_of_values_is_exact(nnz):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask.view(-1)[uniform(20, seed=1).argsort()[:nnz]] = True
    for dense in (mask[None], mask * random((2, 4, 5), torch.float64)):
        sparse = SparseCSRTensor.from_dense(dense)
        assert isinstance(sparse, torch.Tensor) and sparse.shape == dense.shape and sparse.dtype == dense.dtype
        assert sparse.values().shape == (len(dense), nnz)
        assert torch.equal(sparse.to_dense(), dense)


def test_parts():
    offsets, columns = torch.tensor([0, 2, 2, 3]).int(), torch.tensor([1, 3, 0]).int()
    values = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    sparse = SparseCSRTensor(offsets, columns, values, (2, 3, 4))
    assert sparse.values() is values and sparse._csr_row_offsets is offsets and sparse._csr_column_indices is columns
    assert sparse._csr_row_indices.tolist() == [0, 2, 1]
    rows_t, offsets_t, columns_t, perm = sparse._csr_transp_info
    assert (rows_t.tolist(), offsets_t.tolist()) == ([0, 1, 3, 2], [0, 1, 2, 2, 3])
    assert (columns_t.tolist(), perm.tolist()) == ([2, 0, 0], [2, 0, 1])
    assert sparse.to_dense()[1].tolist() == [[0, 4, 0, 5], [0, 0, 0, 0], [6, 0, 0, 0]]
    assert repr(sparse).startswith("sparse_csr_tensor(shape=[2, 3, 4], values=tensor(")
    info = sparse._csr_transp_info
    wrapped = SparseCSRTensor._wrap(sparse.shape, values, sparse._csr_row_indices, offsets, columns, info)
    assert torch.equal(wrapped, sparse) and wrapped._csr_row_offsets is offsets and wrapped._perm is info[3]


def test_bad_parts(monkeypatch):
    monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")  # GPUs look at patterns in this mode alone
    offsets, columns, values = torch.tensor([0, 2, 3]).int(), torch.tensor([1, 3, 0]).int(), torch.ones(1, 3)
    for parts in ((offsets[None], columns, values, (1, 2, 4)), (offsets, columns, values[0], (1, 2, 4)),
                  (offsets, columns, values, (2, 4))):  # fmt: skip
        with pytest.raises(AssertionError, match="SparseCSRTensor: row_offsets has .* dimensions"):
            SparseCSRTensor(*parts)
    with pytest.raises(ValueError, match=r"expected \[3\], \[1, 3\]"):
        SparseCSRTensor(offsets, columns, values[:, :2], (1, 2, 4))
    with pytest.raises(ValueError, match=r"column_indices\[1\] is 3, expected 0 <= index < 3"):
        SparseCSRTensor(offsets, columns, values, (1, 2, 3))
    with pytest.raises(ValueError, match=r"row_offsets\[1\] is 4, expected|row_offsets\[2\] is 3, expected at least 4"):
        SparseCSRTensor(torch.tensor([0, 4, 3]).int(), columns, values, (1, 2, 4))
    different = torch.eye(3).repeat(2, 1, 1)
    different[1, 0, 1] = 1
    with pytest.raises(ValueError, match="one pattern for all of the batch"):
        SparseCSRTensor.from_dense(different)


def test_layouts_of_torch():
    _, dense, sparse = dense_and_sparse()
    for matrix in (dense.to_sparse(), dense[0].to_sparse()):
        close(SparseCSRTensor.from_sparse_coo(matrix), dense[: len(matrix) if matrix.ndim == 3 else 1])
    theirs = dense[0].to_sparse_csr()
    close(SparseCSRTensor.from_sparse_csr(theirs), dense[:1])
    close(SparseCSRTensor.from_sparse_csr(dense.to_sparse_csr()), dense)
    assert torch.equal(sparse.to_sparse_csr().to_dense(), dense)
    one = SparseCSRTensor.from_dense(dense[:1]).to_sparse_csr()
    assert one.shape == (7, 9) and torch.equal(one.to_dense(), dense[0])
    back = SparseCSRTensor.from_sparse_csr(one)
    assert back.values().data_ptr() == one.values().data_ptr()
    assert back._csr_column_indices.data_ptr() == one.col_indices().data_ptr()
    different = torch.stack((torch.eye(3), torch.eye(3).flip(0)))
    for make in (SparseCSRTensor.from_sparse_coo, SparseCSRTensor.from_sparse_csr):
        with pytest.raises(ValueError, match="one pattern"):
            make(different.to_sparse() if make == SparseCSRTensor.from_sparse_coo else different.to_sparse_csr())


# ---- functions ----
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_products(dtype, batch):
    _, dense, sparse = dense_and_sparse(batch, dtype=dtype, grad=True)
    b, c = random((batch, 9, 5), dtype, 5, True), random((batch, 5, 7), dtype, 6, True)
    wide = [t.detach().double().requires_grad_() for t in (dense, b, c)]
    atol = {torch.float32: ATOL, torch.float64: 1e-12}.get(dtype, 5e-2)
    for function in (torch.bmm, torch.matmul, lambda x, y: x @ y):
        out, expected = function(sparse, b), wide[0] @ wide[1]
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)
        left, right = function(c, sparse), wide[2] @ wide[0]
        torch.testing.assert_close(left.double(), right, atol=atol, rtol=0)
    grads = random(out.shape, dtype, 7), random(left.shape, dtype, 8)
    got = torch.autograd.grad((out, left), (sparse.values(), b, c), grads)
    right = torch.autograd.grad((expected, right), wide, [g.double() for g in grads])
    torch.testing.assert_close(
        sparse.with_values(got[0]).to_dense().double(), right[0] * (dense != 0), atol=4 * atol, rtol=0
    )
    for x, y in zip(got[1:], right[1:], strict=True):
        torch.testing.assert_close(x.double(), y, atol=4 * atol, rtol=0)


def test_softmax_and_masked_matmul():
    mask, dense, sparse = dense_and_sparse(grad=True)
    q, k = random((3, 7, 4), seed=3, requires_grad=True), random((3, 9, 4), seed=4, requires_grad=True)
    scores = masked_matmul(q, k.mT, sparse)
    assert isinstance(scores, SparseCSRTensor)
    close(scores, (q @ k.mT) * mask)
    for weights in (scores.softmax(-1), torch.softmax(scores, 2), nn.functional.softmax(scores, dim=-1)):
        expected = ((q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)).nan_to_num(0)
        close(weights, expected)
    values = random((3, 9, 5), seed=5)
    out, right = weights @ values, expected @ values
    grad = random(out.shape, seed=6)
    for x, y in zip(torch.autograd.grad(out, (q, k), grad), torch.autograd.grad(right, (q, k), grad), strict=True):
        torch.testing.assert_close(x, y, atol=ATOL, rtol=0)
    for dim in (0, 1):
        with pytest.raises(TypeError, match="softmax over dimension"):
            scores.softmax(dim)
    with pytest.raises(TypeError, match="only mask is"):
        masked_matmul(sparse, k, None)


def test_one_pattern_serves_any_batch():
    mask = visible(7, 9)
    sparse = SparseCSRTensor.from_dense(mask[None])
    q, k, v = random((5, 7, 4)), random((5, 9, 4), seed=1), random((5, 9, 3), seed=2)
    scores = masked_matmul(q, k.mT, sparse)
    assert scores.shape == (5, 7, 9) and scores._csr_column_indices is sparse._csr_column_indices
    expected = (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0) @ v
    close(scores.softmax(-1) @ v, expected)
    weights = SparseCSRTensor.from_dense(mask[None].float())
    close(weights @ v, mask.float() @ v)


def test_masked_matmul_of_dense_masks():
    a, b = random((2, 4, 3)), random((2, 3, 5), seed=1)
    assert torch.equal(masked_matmul(a, b), a @ b)
    mask = visible(4, 5)
    assert torch.equal(masked_matmul(a, b, mask), (a @ b).masked_fill(~mask, -torch.inf))
    bias = random((4, 5), seed=2)
    assert torch.equal(masked_matmul(a, b, bias), a @ b + bias)


def test_transpose():
    _, dense, sparse = dense_and_sparse(grad=True)
    for turned in (sparse.transpose(1, 2), torch.transpose(sparse, -2, -1), sparse.transpose(-1, -2)):
        assert torch.equal(turned.to_dense(), dense.mT)
    assert torch.equal(turned.transpose(1, 2), sparse)
    grad = random((3, 9, 7), seed=2)
    got = torch.autograd.grad(turned.to_dense(), sparse.values(), grad)[0]
    assert torch.equal(sparse.with_values(got).to_dense(), grad.mT * (dense != 0))
    with pytest.raises(TypeError, match="the last two"):
        sparse.transpose(0, 1)


def test_sums_and_multiples():
    _, dense, sparse = dense_and_sparse()
    other = SparseCSRTensor.from_dense(dense * 3)  # equal contents, other objects
    close(sparse + other, dense * 4)
    close(torch.add(sparse, sparse), dense * 2)
    close(sparse * other, dense * dense * 3)
    for product in (sparse * 2, 2 * sparse, sparse * torch.tensor(2.0), torch.mul(2, sparse)):
        close(product, dense * 2)
    one = SparseCSRTensor.from_dense(dense[:1])
    close(one + sparse, dense[:1] + dense)
    shifted = SparseCSRTensor.from_dense(dense.roll(1, 2))
    for function in (torch.add, torch.mul):
        with pytest.raises(NotImplementedError, match="another pattern"):
            function(sparse, shifted)
        with pytest.raises(NotImplementedError, match="with Tensor"):
            function(sparse, dense)


def test_logical_and():
    mask = visible(7, 9)
    sparse = SparseCSRTensor.from_dense(mask[None])
    other = visible(7, 9, seed=5)
    for both in (sparse & other, torch.logical_and(sparse, other[None]), other & sparse):
        assert both.dtype == torch.bool and torch.equal(both.to_dense()[0], mask & other)
    assert (sparse & ~mask).values().numel() == 0
    with pytest.raises(NotImplementedError, match="sparse"):
        sparse & sparse


def test_dropout():
    _, _, sparse = dense_and_sparse(m=60, n=60)
    torch.manual_seed(0)
    dropped = nn.functional.dropout(sparse, 0.25)
    kept = dropped.values() != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped.values()[kept], sparse.values()[kept] / 0.75)
    assert nn.Dropout(0.5).eval()(sparse).values() is sparse.values()


def test_other_functions_are_refused_by_name():
    _, dense, sparse = dense_and_sparse()
    for function, name in ((torch.exp, "exp"), (lambda x: x.sum(), "sum"), (lambda x: x[0], "__getitem__"),
                           (lambda x: x.T, "T"), (lambda x: torch.cat([x, x]), "cat")):  # fmt: skip
        with pytest.raises(NotImplementedError, match=rf"SparseCSRTensor: {name} is not supported"):
            function(sparse)
    with pytest.raises(TypeError, match="dense tensor"):
        torch.matmul(sparse, sparse)
    with pytest.raises(AssertionError, match="3 dimensions"):
        sparse @ dense[0].mT


# ---- as a tensor ----
def test_gradient_is_sparse():
    _, dense, sparse = dense_and_sparse(grad=True)
    assert sparse.requires_grad and sparse.is_leaf and sparse.grad is None
    assert not sparse.detach().requires_grad and sparse.detach().values().data_ptr() == sparse.values().data_ptr()
    b = random((3, 9, 5), seed=4)
    (sparse @ b).sum().backward()
    assert isinstance(sparse.grad, SparseCSRTensor)
    close(sparse.grad, (torch.ones(3, 7, 5) @ b.mT) * (dense != 0))
    sparse.grad = None
    assert sparse.values().grad is None
    (sparse * 2).values().sum().backward()
    assert torch.equal(sparse.grad.values(), torch.full_like(sparse.values(), 2))


def test_copies():
    _, dense, sparse = dense_and_sparse()
    assert torch.equal(copy.deepcopy(sparse), sparse) and copy.deepcopy(sparse).values() is not sparse.values()
    pair = copy.deepcopy([sparse, sparse])
    assert pair[0] is pair[1]
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False), sparse)
    assert torch.equal(sparse.clone(), sparse) and not torch.equal(sparse, sparse * 2)
    other = SparseCSRTensor.from_dense(torch.where(visible(7, 9, 0.8, 3), random((3, 7, 9)), 0))
    assert not torch.equal(sparse, other)
    values = sparse.values()
    assert sparse.copy_(other) is sparse and torch.equal(sparse, other)
    assert sparse.values() is values and values.data_ptr() != other.values().data_ptr()
    close(sparse @ random((3, 9, 2)), other.to_dense() @ random((3, 9, 2)))
    with pytest.raises(ValueError, match="copy_"):
        sparse.copy_(dense)


def test_moves(device):
    _, dense, sparse = dense_and_sparse()
    assert getattr(sparse, device)() is sparse and sparse.to(sparse.device) is sparse.to(torch.float32) is sparse
    assert sparse.to("cpu").device.type == sparse.cpu()._csr_row_offsets.device.type == "cpu"
    for half in (
        sparse.to(torch.float16),
        sparse.half(),
        sparse.to(device, torch.float16),
        sparse.to(dtype=torch.half),
    ):
        assert half.dtype == torch.float16 and half.values().dtype == torch.float16
        close(half.float(), dense.half().float())
    meta = sparse.to("meta")
    assert meta.device.type == "meta" and meta._csr_row_offsets.device.type == "meta"
    assert (meta @ torch.ones(3, 9, 2, device="meta")).shape == (3, 7, 2)


class Holder(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.register_buffer("mask", sparse)


def test_as_a_buffer():
    _, _, sparse = dense_and_sparse()
    module = Holder(sparse)
    assert module.to(torch.float64).mask.dtype == torch.float64 and module.double() is module
    state = copy.deepcopy(module.state_dict())
    assert isinstance(state["mask"], SparseCSRTensor)
    denser = SparseCSRTensor.from_dense(torch.where(visible(7, 9, 0.9, 9), random((3, 7, 9), torch.float64), 0))
    other = Holder(denser)
    kept = other.mask
    assert denser.values().shape != state["mask"].values().shape
    other.load_state_dict(state)
    assert other.mask is kept and torch.equal(other.mask, state["mask"])


# ---- SparseCS ----
@pytest.mark.parametrize("batch", [1, 5])
def test_sparse_mask(batch):
    mask = visible(7, 9)
    sparse = SparseCS(mask)
    assert sparse.shape == (7, 9) and sparse.ndim == 3 and sparse.is_sparse and sparse.dtype == torch.bool
    assert sparse.device == mask.device and sparse.values.shape == (1, int(mask.sum()))
    assert torch.equal(sparse.to_dense()[0], mask)
    q, k, v = random((batch, 7, 4)), random((batch, 9, 4), seed=1), random((batch, 9, 3), seed=2)
    weights = (sparse.matmul_with_mask(q, k.mT) * 0.5).softmax()
    expected = ((q @ k.mT) * 0.5).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0)
    torch.testing.assert_close(weights.to_dense(), expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(weights.spmm(v), expected @ v, atol=ATOL, rtol=0)
    torch.testing.assert_close((weights + weights).to_dense(), 2 * expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(weights.transpose().to_dense(), expected.mT, atol=ATOL, rtol=0)


def test_sparse_mask_parts():
    mask = visible(7, 9)
    sparse = SparseCS(mask[None].float(), device=torch.get_default_device())
    parts = sparse.row_indices, sparse.row_offsets, sparse.column_indices
    wrapped = SparseCS.wrap(sparse.shape, sparse.values, *parts, sparse._transp_info)
    assert torch.equal(wrapped.to_dense(), sparse.to_dense()) and wrapped.row_offsets is sparse.row_offsets
    assert (sparse & ~mask).values.numel() == 0 and sparse.logical_and(mask).values.numel() == mask.sum()
    with pytest.raises(NotImplementedError):
        sparse & sparse
    assert sparse.to(torch.device("meta")).device.type == sparse.to("meta").device.type == "meta"
    with pytest.raises(AssertionError, match="SparseCS: matrix is"):
        SparseCS(mask[0])


# ---- helpers ----
def test_helpers():
    mask = visible(6, 4)
    rows, columns = (places.int() for places in mask.nonzero(as_tuple=True))
    offsets, same = utils._coo_to_csr(6, 4, rows, columns)
    assert same is columns and offsets.dtype == torch.int32
    assert offsets.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert torch.equal(utils._csr_to_coo(6, 4, offsets, columns)[0], rows)
    lengths = mask.sum(1)[utils._diffsort(offsets).long()]
    assert torch.equal(lengths, lengths.sort(descending=True).values)
    row_indices, row_offsets, column_indices = utils._nonzero_mask_to_sparse_csr_indices(
        mask, torch.get_default_device()
    )
    assert torch.equal(row_offsets, offsets) and torch.equal(column_indices, columns)
    dense = mask * random((6, 4), torch.float64)
    values, *pattern = utils._dense_to_sparse(dense, mask.device)
    assert values.dtype == torch.float32 and torch.equal(values, dense[mask].float())
    assert all(part.dtype == torch.int32 for part in pattern)
    values, *pattern = utils._dense3d_to_sparse(dense[None].repeat(2, 1, 1), mask.device)
    assert values.shape == (2, int(mask.sum()))
    turned = utils._transpose(6, 4, pattern[0], values, pattern[1], pattern[2])
    back = SparseCSRTensor._wrap((2, 4, 6), turned[1], turned[0], turned[2], turned[3], None)
    assert torch.equal(back.to_dense()[0], dense.T)
    assert torch.equal(row_indices, pattern[0])


@pytest.mark.parametrize("nnz", [0, 3, 4, 7])
def test_round_nnz(nnz):
    mask = torch.zeros(4, 5)
    mask.view(-1)[:nnz] = 1
    assert utils._round_nnz(mask).sum() == nnz // 4 * 4
    assert torch.equal(utils._round_nnz(mask, 1), mask)


# ---- torch.compile, autocast ----
def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_attention_compiles():
    def attention(q, k, v, mask):
        scores = masked_matmul(q, k.mT, mask)
        return nn.functional.dropout(torch.softmax(scores * 0.5, -1) + scores, 0.0) @ v

    sparse = SparseCSRTensor.from_dense(visible(7, 9)[None])
    q, k, v = random((2, 7, 4), requires_grad=True), random((2, 9, 4), seed=1), random((2, 9, 3), seed=2)
    results = []
    for function in (attention, compiled(attention)):
        out = function(q, k, v, sparse)
        results.append((out, *torch.autograd.grad(out, q, torch.ones_like(out))))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_compiled_functions_return_sparse_tensors():
    def scores(q, k, mask):
        return masked_matmul(q, k.mT, mask).transpose(1, 2)

    sparse = SparseCSRTensor.from_dense(visible(7, 9)[None])
    q, k = random((2, 7, 4)), random((2, 9, 4), seed=1)
    out = compiled(scores)(q, k, sparse)
    assert isinstance(out, SparseCSRTensor) and torch.equal(out, scores(q, k, sparse))


def test_values_get_their_gradient_through_compiled_functions():
    def product(values, mask, b):
        return mask.with_values(values * 2) @ b

    _, dense, sparse = dense_and_sparse()
    values, b = sparse.values().clone().requires_grad_(), random((3, 9, 2))
    out = compiled(product)(values, sparse, b)
    close(out, 2 * dense @ b)
    right = torch.autograd.grad(product(values, sparse, b).sum(), values)
    assert torch.equal(torch.autograd.grad(out.sum(), values)[0], right[0])
    sparse.requires_grad_()
    with pytest.raises(Exception, match="with_values"):
        compiled(lambda sparse, b: sparse @ b)(sparse, b)


def test_autocast(device):
    mask = SparseCS(visible(7, 9))
    linear = nn.Linear(4, 4)
    x, v = random((2, 7, 4)), random((2, 9, 4), seed=1)
    with torch.autocast(device, torch.bfloat16):
        weights = mask.matmul_with_mask(linear(x), linear(v).mT).softmax()
        out = weights.spmm(linear(v))
    assert weights.dtype == out.dtype == torch.bfloat16
