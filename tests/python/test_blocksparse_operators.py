"""The block-sparse operators, their classes and BlockSparseTensor, beside dense products in fp64."""

import copy
import os

import pytest
import torch
import torch._dynamo
from blocks_reference import DTYPES, TOLERANCE, random, uniform
from devices import on_each_device  # noqa: F401
from torch import nn
from torch.library import opcheck
from xformers.sparse import BlockSparseTensor, blocksparse

from xformers import operators as ops
from xformers.ops import masked_matmul

here = torch.get_default_device


def layout_of(heads, rows, columns, density=0.5, seed=0):
    """Random, with a row and a column that have no block."""
    layout = uniform(heads, rows, columns, seed=seed) < density
    layout[:, rows // 2] = False
    layout[:, :, columns // 2] = False
    return layout.long()


def blocks_of(dense, layout, block):
    """The stored blocks of a dense matrix [Z, H, rows, columns]."""
    heads, rows, columns = layout.nonzero(as_tuple=True)
    parts = dense.unflatten(3, (-1, block)).unflatten(2, (-1, block))  # [Z, H, r, block, c, block]
    return parts[:, heads, rows, :, columns].transpose(0, 1)


def elements_of(layout, block):
    """The layout as a mask of elements."""
    return layout.bool().repeat_interleave(block, 1).repeat_interleave(block, 2)


def dense_of(values, layout, block):
    """Differentiable, by a gather from the blocks and one of zeros."""
    index = torch.full(layout.shape, values.shape[1])
    index[layout.bool()] = torch.arange(values.shape[1])
    padded = torch.cat([values, values.new_zeros(len(values), 1, block, block)], 1)
    return padded[:, index].transpose(3, 4).flatten(4, 5).flatten(2, 3)


def assert_near(got, expected, atol):
    """One rounding of the result, and atol for sums."""
    assert got.shape == expected.shape
    bound = atol + 1.01 * TOLERANCE[got.dtype] * expected.detach().abs()
    assert ((got.detach().double() - expected.detach()).abs() <= bound).all()


def arithmetic(dtype):
    return 1e-14 if dtype == torch.float64 else 1e-6


# ---- products ----
def check_product(mode, block, trans_a, trans_b, trans_c, sizes, dtype=torch.float32):
    z, h, m, n, k = sizes
    rows, columns = {"sdd": (m, n), "dsd": (m, k), "dds": (k, n)}[mode]
    if mode == "sdd" and trans_c or mode == "dsd" and trans_a or mode == "dds" and trans_b:
        rows, columns = columns, rows
    layout = layout_of(h, rows // block, columns // block)
    nnz = int(layout.sum())
    a = random((z, h, k, m) if trans_a else (z, h, m, k), dtype, 1)
    b = random((z, h, n, k) if trans_b else (z, h, k, n), dtype, 2)
    if mode == "dsd":
        a = random((z, nnz, block, block), dtype, 1)
    if mode == "dds":
        b = random((z, nnz, block, block), dtype, 2)
    a.requires_grad_(), b.requires_grad_()
    out = blocksparse.matmul(layout, block, mode, here(), trans_a, trans_b, trans_c)(a, b)

    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    left, right = (
        dense_of(x, layout, block) if mode == kind else x for x, kind in zip(wide, ("dsd", "dds"), strict=True)
    )
    whole = (left.mT if trans_a else left) @ (right.mT if trans_b else right)
    whole = whole.mT if trans_c else whole
    expected = blocks_of(whole, layout, block) if mode == "sdd" else whole
    scale = float((left.detach().abs().max() * right.detach().abs().max()) * k)
    assert_near(out, expected, arithmetic(dtype) * scale)
    grad = random(out.shape, dtype, 3)
    gradients = torch.autograd.grad(out, (a, b), grad)
    for got, right in zip(gradients, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert_near(got, right, arithmetic(dtype) * scale * 2)


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("mode", ["sdd", "dsd", "dds"])
def test_products(mode, block):
    for trans_a in (False, True):
        for trans_b in (False, True):
            check_product(mode, block, trans_a, trans_b, False, (1, 2, 256, 192, 128))
    check_product(mode, block, False, True, True, (1, 2, 128, 192, 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["sdd", "dsd", "dds"])
def test_products_of_every_dtype(mode, dtype):
    """Depths and widths that are no multiple of anything, where they need not be."""
    m, n, k = {"sdd": (96, 64, 300), "dsd": (96, 37, 64), "dds": (37, 96, 64)}[mode]
    for trans_a, trans_b in ((False, False), (True, True)):
        check_product(mode, 32, trans_a, trans_b, False, (2, 3, m, n, k), dtype)


def test_product_of_a_large_batch():
    check_product("sdd", 32, False, True, False, (32, 2, 256, 192, 128))


def test_strides_and_out():
    layout = layout_of(2, 4, 3)
    a = random((128, 40, 2, 3)).permute(3, 2, 0, 1)
    b = random((3, 40, 2, 96)).transpose(1, 2)
    product = blocksparse.matmul(layout, 32, "sdd", here())
    expected = product(a.contiguous(), b.contiguous())
    assert torch.equal(product(a, b), expected)
    out = torch.empty_like(expected)
    assert product(a, b, out=out) is out and torch.equal(out, expected)
    back = blocksparse.matmul(layout, 32, "dsd", here())
    assert torch.equal(back(expected, b.mT[:, :, :, ::2]), back(expected, b.mT[:, :, :, ::2].contiguous()))
    shared = random((3, 1, 96, 1)).expand(3, 2, 96, 20)
    assert torch.equal(back(expected, shared), back(expected, shared.contiguous()))


def test_empty_layouts_give_zeros():
    layout = torch.zeros(2, 3, 4, dtype=torch.bool)
    values = blocksparse.matmul(layout, 16, "sdd", here())(random((2, 2, 48, 8)), random((2, 2, 8, 64)))
    assert values.shape == (2, 0, 16, 16)
    out = blocksparse.matmul(layout, 16, "dsd", here())(values, random((2, 2, 64, 5)))
    assert torch.equal(out, torch.zeros(2, 2, 48, 5))
    assert blocksparse.softmax(layout, 16, here())(values).shape == values.shape


# ---- softmax ----
def reference_softmax(values, layout, block, scale, causal, bias=None):
    scores = dense_of(values, layout, block) * scale
    seen = elements_of(layout, block).expand_as(scores)
    if causal:
        seen = seen.tril()
    if bias is not None:
        seen, scores = seen & (bias > -torch.inf), scores + bias
    scores = scores.masked_fill(~seen, -torch.inf).masked_fill(~seen.any(-1, keepdim=True), 0)
    return blocks_of(scores.softmax(-1) * seen, layout, block)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("width", [256, 576, 1792])
def test_softmax(width, block, causal):
    layout = layout_of(2, 3, -(-width // block))
    values = random((2, int(layout.sum()), block, block), torch.float32, 1, True)
    for is_dense in (False, True):
        out = blocksparse.softmax(layout, block, here(), is_dense)(values, scale=0.4, is_causal=causal)
        wide = values.detach().double().requires_grad_()
        expected = reference_softmax(wide, layout, block, 0.4, causal)
        assert_near(blocks_of(out, layout, block) if is_dense else out, expected, 1e-7)
    grad = random(expected.shape, seed=2)
    got = torch.autograd.grad(out, values, dense_of(grad, layout, block))[0]
    assert_near(got, torch.autograd.grad(expected, wide, grad.double())[0], 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_masks(dtype):
    block, layout = 16, layout_of(3, 4, 5)
    values = random((2, int(layout.sum()), block, block), dtype, 1, True)
    rel = random((1, 3, 64, 80), dtype, 2, True)
    mask = uniform(64, 80, seed=3) < 0.7
    padding = torch.arange(80) < torch.tensor([70, 20])[:, None]
    function = blocksparse.softmax(layout, block, here())
    out = function(values, scale=0.5, rel_logits=rel, attn_mask=mask, key_padding_mask=padding)
    hidden = torch.zeros(2, 1, 64, 80).masked_fill(~(mask & padding[:, None, None]), -torch.inf).double()
    wide = [x.detach().double().requires_grad_() for x in (values, rel)]
    expected = reference_softmax(wide[0], layout, block, 0.5, False, wide[1] + hidden)
    assert_near(out, expected, 3 * TOLERANCE[dtype])  # of scores, which are rounded once where masks are added up
    added = function(values, scale=0.5, rel_logits=rel, attn_mask=hidden.to(dtype))
    assert torch.equal(added, out)
    if dtype in (torch.float32, torch.float64):
        grad = random(out.shape, dtype, 4)
        got = torch.autograd.grad(out, (values, rel), grad)
        for x, y in zip(got, torch.autograd.grad(expected, wide, grad.double()), strict=True):
            torch.testing.assert_close(x.double(), y, atol=1e-5, rtol=0)


def test_softmax_is_exact_however_far_rows_lie_apart():
    layout = torch.tensor([[[1, 0, 1], [0, 0, 0]]])
    values = random((1, 2, 16, 16), torch.float32, 1)
    values[:, :, ::2] -= 1e4
    values[:, :, 1::2] += 1e4
    out = blocksparse.softmax(layout, 16, here())(values)
    assert_near(out, reference_softmax(values.double(), layout, 16, 1.0, False), 1e-6)
    torch.testing.assert_close(out.sum((1, 3)), torch.ones(1, 16))


def test_gradients_of_gradients():
    layout = layout_of(1, 2, 3, 0.9)
    tables = ops.blocksparse_tables(layout)
    a, b = random((1, 1, 32, 2), torch.float64, 1, True), random((1, 1, 2, 48), torch.float64, 2, True)
    values = random((1, int(layout.sum()), 16, 16), torch.float64, 3, True)
    c = random((1, 1, 48, 2), torch.float64, 4, True)
    checks = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    for check in checks:
        check(lambda *x: ops.blocksparse_sdd(*x, *tables[:2], 16, *tables[2:]), (a, b), fast_mode=True)
        check(lambda *x: ops.blocksparse_dsd(*x, *tables[:2], 32, *tables[2:]), (values, c), fast_mode=True)
        check(lambda *x: ops.blocksparse_dsd(*x, *tables[:2], 48, transposed=True), (values, a), fast_mode=True)
    bias = random((1, 1, 1, 48), torch.float64, 5, True)
    checks[0](lambda x, y: ops.blocksparse_softmax(x, *tables[:2], 1, 48, 0.5, True, y), (values, bias), fast_mode=True)


# ---- bad input ----
def test_bad_classes():
    layout = layout_of(2, 3, 4)
    with pytest.raises(NotImplementedError, match="mode is 'dss'"):
        blocksparse.matmul(layout, 16, "dss", here())
    for make in (lambda block, given: blocksparse.matmul(given, block, "sdd", here()),
                 lambda block, given: blocksparse.softmax(given, block, here())):  # fmt: skip
        with pytest.raises(ValueError, match=r"block is 24, expected one of \[16, 32, 64, 128\]"):
            make(24, layout)
        with pytest.raises(ValueError, match=r"layout is \[3, 4\], expected \[H, h, w\]"):
            make(16, layout[0])


def test_sizes_that_do_not_fit():
    layout = layout_of(2, 3, 4)
    a, b, values = torch.ones(1, 2, 48, 8), torch.ones(1, 2, 8, 64), torch.ones(1, int(layout.sum()), 16, 16)
    sdd, dsd = (blocksparse.matmul(layout, 16, mode, here()) for mode in ("sdd", "dsd"))
    cases = [
        (lambda: sdd(a[:, :, :40], b), "a.size(2) is 40, expected a multiple of block = 16"),
        (lambda: sdd(a[:, :, :32], b), "row_offsets is [7]"),
        (lambda: sdd(a, b[:, :1]), "b is [1, 1, 8, 64]"),
        (lambda: sdd(a, b.double()), "b.dtype is fp64, expected fp32"),
        (lambda: sdd(a[0], b), "a is [2, 48, 8]"),
        (lambda: dsd(values[:, 1:], b.mT), "values is"),
        (lambda: dsd(values, torch.ones(1, 2, 48, 8)), "row_offsets_t is [9]"),
        (lambda: ops.blocksparse_tables(layout.float()), "expected bool or integers"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "Fix:" in str(error.value), str(error.value)


def test_tables_that_leave_the_matrix(monkeypatch):
    monkeypatch.setenv("XFORMERS_CHECK_INDICES", "1")  # GPUs look at layouts in this mode alone
    offsets, columns = torch.tensor([0, 1, 2]).int(), torch.tensor([0, 2]).int()
    a, b, values = torch.ones(1, 1, 32, 4), torch.ones(1, 1, 4, 32), torch.ones(1, 2, 16, 16)
    for call in (
        lambda: ops.blocksparse_sdd(a, b, offsets, columns, 16),
        lambda: ops.blocksparse_dsd(values, b.mT, offsets, columns, 32),
        lambda: ops.blocksparse_softmax(values, offsets, columns, 1, 32),
    ):
        with pytest.raises(ValueError, match=r"column_indices\[1\] is 2, expected 0 <= index < 2"):
            call()
    with pytest.raises(ValueError, match=r"row_offsets\[1\] is 3, expected|row_offsets\[2\] is 2, expected at least 3"):
        ops.blocksparse_sdd(a, b, torch.tensor([0, 3, 2]).int(), columns, 16)


# ---- what PyTorch asks of operators ----
def calls():
    layout = layout_of(2, 3, 4)
    tables = ops.blocksparse_tables(layout)
    a, b = random((2, 2, 48, 5), seed=1, requires_grad=True), random((2, 2, 5, 64), seed=2, requires_grad=True)
    values = random((2, int(layout.sum()), 16, 16), seed=3, requires_grad=True)
    bias = random((1, 2, 48, 64), seed=4, requires_grad=True)
    detached = values.detach()
    return {
        "blocksparse_sdd": (a, b, *tables[:2], 16, *tables[2:]),
        "blocksparse_dsd": (values, b.mT, *tables[:2], 48, *tables[2:]),
        "blocksparse_dsd transposed": (values, a, *tables[:2], 64, None, None, None, True),
        "blocksparse_softmax": (values, *tables[:2], 2, 64, 0.5, True, bias),
        "blocksparse_softmax_inner": (values, *tables[:2], 2, 64, bias),
        "blocksparse_softmax_backward": (detached, detached, *tables[:2], 0.5),
        "blocksparse_to_dense": (values, *tables[:2], 2, 64),
    }


CALLS = list(calls())


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    opcheck(getattr(torch.ops.xformers, name.split()[0]).default, calls()[name])


def test_every_instruction_set_gives_the_same(device, monkeypatch):
    if device != "cpu":
        pytest.skip("of processors")
    layout = layout_of(2, 3, 4)
    for dtype in DTYPES:
        a, b = random((1, 2, 96, 40), dtype, 1), random((1, 2, 40, 128), dtype, 2)
        outs = []
        for isa in ops.cpu_isas():
            monkeypatch.setitem(os.environ, "XFORMERS_CPU_ISA", isa)
            values = blocksparse.matmul(layout, 32, "sdd", here())(a, b)
            weights = blocksparse.softmax(layout, 32, here())(values, scale=0.1)
            outs.append(blocksparse.matmul(layout, 32, "dsd", here())(weights, b.mT).double())
        for out in outs[1:]:
            torch.testing.assert_close(out, outs[0], atol=16 * TOLERANCE[dtype], rtol=0)


def test_other_devices_are_refused_in_one_sentence(device):
    """What the operator does where the dispatcher finds another device, without having any."""
    if device != "cpu" or torch._C._dispatch_has_kernel_for_dispatch_key("xformers::blocksparse_sdd", "CUDA"):
        pytest.skip("this build has kernels for CUDA")
    for name in ("blocksparse_sdd", "blocksparse_dsd", "blocksparse_softmax_inner"):
        detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in calls()[name]]
        with pytest.raises(NotImplementedError, match="no kernels on other devices yet.*Fix:"):
            operator = getattr(torch.ops.xformers, name).default
            operator._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *detached)


# ---- BlockSparseTensor ----
BLOCK = 16


def tensor_and_dense(batch=3, heads=2, rows=4, columns=5, dtype=torch.float32, grad=False, seed=0):
    layout = layout_of(heads, rows, columns, seed=seed)
    values = random((batch, int(layout.sum()), BLOCK, BLOCK), dtype, seed + 1, grad)
    return BlockSparseTensor(values, layout), dense_of(values.detach(), layout, BLOCK).requires_grad_(grad)


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(
        got.to_dense() if isinstance(got, BlockSparseTensor) else got, expected, atol=atol, rtol=0, check_dtype=False
    )


def test_tensor():
    sparse, dense = tensor_and_dense()
    assert isinstance(sparse, torch.Tensor) and sparse.shape == dense.shape == (3, 2, 64, 80)
    assert torch.equal(sparse.to_dense(), dense)
    assert repr(sparse).startswith("block_sparse_tensor(shape=[3, 2, 64, 80], values=tensor(")
    values, layout = sparse.values(), sparse._layout
    assert torch.equal(BlockSparseTensor._raw_wrap(values, layout), sparse)
    assert torch.equal(BlockSparseTensor._wrap(values[:1], sparse).to_dense(), dense[:1])
    assert torch.equal(BlockSparseTensor(values, layout.bool()), sparse)
    for bad in (values[0], values[:, :, :, :8], values[:, :, :8, :8]):
        with pytest.raises(AssertionError, match="BlockSparseTensor: values are"):
            BlockSparseTensor(bad, layout)
    with pytest.raises(AssertionError, match="expected one device"):
        BlockSparseTensor(values, layout.to("meta"))
    with pytest.raises(ValueError, match="values have .* blocks, expected"):
        BlockSparseTensor(values[:, 1:], layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_products(dtype):
    sparse, dense = tensor_and_dense(dtype=dtype, grad=True)
    b, c = random((3, 2, 80, 7), dtype, 5, True), random((3, 2, 7, 64), dtype, 6, True)
    wide = [x.detach().double().requires_grad_() for x in (dense, b, c)]
    atol = {torch.float32: 1e-4, torch.float64: 1e-12}.get(dtype, 0.3)
    out, left = sparse @ b, torch.matmul(c, sparse)
    expected, right = wide[0] @ wide[1], wide[2] @ wide[0]
    close(out.double(), expected, atol)
    close(left.double(), right, atol)
    grads = random(out.shape, dtype, 7), random(left.shape, dtype, 8)
    got = torch.autograd.grad((out, left), (sparse.values(), b, c), grads)
    expected = torch.autograd.grad((expected, right), wide, [g.double() for g in grads])
    visible = elements_of(sparse._layout, BLOCK)
    close(sparse.with_values(got[0]).to_dense().double(), expected[0] * visible, 4 * atol)
    for x, y in zip(got[1:], expected[1:], strict=True):
        close(x.double(), y, 4 * atol)


def test_tensor_attention():
    sparse, _ = tensor_and_dense()
    q, k, v = (random((3, 2, size, 8), seed=i, requires_grad=True) for i, size in enumerate((64, 80, 80)))
    scores = masked_matmul(q, k.mT, sparse)
    assert isinstance(scores, BlockSparseTensor)
    visible = elements_of(sparse._layout, BLOCK)
    close(scores, (q @ k.mT) * visible)
    expected = (q @ k.mT).masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    for weights in (scores.softmax(-1), torch.softmax(scores, 2), nn.functional.softmax(scores, 3)):
        close(weights, expected)
    out, right = weights @ v, expected @ v
    grad = random(out.shape, seed=9)
    got, wanted = (torch.autograd.grad(x, (q, k, v), grad) for x in (out, right))
    for x, y in zip(got, wanted, strict=True):
        close(x, y)
    with pytest.raises(TypeError, match="softmax over dimension"):
        scores.softmax(1)
    with pytest.raises(TypeError, match="only mask is"):
        masked_matmul(sparse, v)
    with pytest.raises(ValueError, match="as the mask"):
        masked_matmul(q, k.mT[..., :64], sparse)


def test_tensor_functions():
    sparse, dense = tensor_and_dense(grad=True)
    close(sparse + sparse, 2 * dense)
    close(sparse * sparse * 0.5, dense * dense * 0.5)
    close(2 * sparse, 2 * dense)
    turned = sparse.transpose(2, 3)
    assert torch.equal(turned.to_dense(), dense.mT) and torch.equal(turned.transpose(-1, -2), sparse)
    close(turned @ random((3, 2, 64, 3)), dense.mT @ random((3, 2, 64, 3)))
    torch.manual_seed(0)
    assert 0.4 < (nn.functional.dropout(sparse, 0.5).values() != 0).float().mean() < 0.6
    other, _ = tensor_and_dense(seed=5)
    with pytest.raises(NotImplementedError, match="another layout"):
        sparse + other
    for function, name in ((torch.exp, "exp"), (lambda x: x & x, "__and__"), (lambda x: x.sum(), "sum")):
        with pytest.raises(NotImplementedError, match=rf"BlockSparseTensor: {name} is not supported"):
            function(sparse)
    with pytest.raises(TypeError, match="the last two"):
        sparse.transpose(1, 2)
    with pytest.raises(TypeError, match="dense tensor"):
        torch.matmul(sparse, sparse)


def test_tensor_as_a_tensor():
    sparse, dense = tensor_and_dense(grad=True)
    (sparse @ torch.ones(3, 2, 80, 4)).sum().backward()
    assert isinstance(sparse.grad, BlockSparseTensor)
    close(sparse.grad, 4.0 * elements_of(sparse._layout, BLOCK).expand_as(dense))
    assert sparse.detach().values().data_ptr() == sparse.values().data_ptr() and not sparse.detach().requires_grad
    assert torch.equal(copy.deepcopy(sparse), sparse) and torch.equal(sparse.clone(), sparse)
    half = sparse.half()
    assert half.dtype == torch.float16 and half._layout is not None
    meta = sparse.to("meta")
    assert meta._layout.device.type == "meta" and (meta @ torch.ones(3, 2, 80, 4, device="meta")).shape == (3, 2, 64, 4)
    module = nn.Module()
    module.register_buffer("mask", sparse.detach())
    other, _ = tensor_and_dense(seed=5)
    state = {"mask": other}
    kept = module.mask
    module.load_state_dict(state)
    assert module.mask is kept and torch.equal(module.mask, other) and torch.equal(module.mask._layout, other._layout)
    assert module.double().mask.dtype == torch.float64


def test_tensor_compiles():
    def attention(q, k, v, mask):
        return torch.softmax(masked_matmul(q, k.mT, mask) * 0.5, -1) @ v

    sparse, _ = tensor_and_dense()
    q, k, v = (random((3, 2, size, 8), seed=i, requires_grad=True) for i, size in enumerate((64, 80, 80)))
    torch._dynamo.reset()
    results = []
    for function in (attention, torch.compile(attention, fullgraph=True, backend="aot_eager")):
        out = function(q, k, v, sparse)
        results.append((out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_autocast_keeps_the_dtype_of_values(device):
    sparse, dense = tensor_and_dense()
    with torch.autocast(device, torch.bfloat16):
        out = sparse @ random((3, 2, 80, 4), torch.bfloat16)
    assert out.dtype == torch.float32
