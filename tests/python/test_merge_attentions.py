"""merge_attentions against its formula (results, each gradient, layouts) and against attention over all keys."""

import pytest
import torch
from attention_inputs import qkv, random, with_strides
from devices import on_each_device  # noqa: F401

forward = torch.ops.xformers.attention_forward
merge = torch.ops.xformers.merge_attentions
LAYOUTS = {"4d": (2, 5, 3, 8), "5d": (2, 5, 2, 3, 8), "one_row": (1, 1, 1, 1), "odd": (3, 7, 2, 5)}


def lse_shape(shape):
    return (shape[0], *shape[2:-1], shape[1])


def parts(shape, n, dtype=torch.float64, lse_dtype=None, requires_grad=True):
    attn = [random(shape, dtype, seed=i, requires_grad=requires_grad) for i in range(n)]
    lse_dtype = lse_dtype or (torch.float64 if dtype == torch.float64 else torch.float32)
    lse = [random(lse_shape(shape), lse_dtype, seed=100 + i, requires_grad=requires_grad) for i in range(n)]
    return attn, lse


def formula(attn, lse):
    """In fp64; parts whose lse is -inf are left out by the caller."""
    attn, lse = torch.stack([x.double() for x in attn]), torch.stack([x.double() for x in lse])
    total = lse.logsumexp(0)
    weights = (lse - total).exp().movedim(-1, 2)[..., None]
    return (weights * attn).sum(0), total


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 60])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_and_each_gradient(layout, n):
    attn, lse = parts(LAYOUTS[layout], n)
    out, total = merge(attn, lse)
    expected_out, expected_total = formula(attn, lse)
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, expected_total, rtol=1e-12, atol=1e-12)
    # The gradient that arrives at one result alone, and at both.
    cases = {"out": ([out], [expected_out]), "lse": ([total], [expected_total]),
             "both": ([out, total], [expected_out, expected_total])}  # fmt: skip
    for got, expected in cases.values():
        incoming = [random(x.shape, x.dtype, seed=7) for x in got]
        got_grads = torch.autograd.grad(got, [*attn, *lse], incoming, retain_graph=True, allow_unused=True)
        want_grads = torch.autograd.grad(expected, [*attn, *lse], incoming, retain_graph=True, allow_unused=True)
        for g, w in zip(got_grads, want_grads, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, rtol=1e-12, atol=1e-12)


def test_only_one_input_requires_grad():
    attn, lse = parts((2, 5, 3, 8), 3, requires_grad=False)
    for index in range(6):
        leaves = [x.detach().requires_grad_(i == index) for i, x in enumerate((*attn, *lse))]
        (got,) = torch.autograd.grad(merge(leaves[:3], leaves[3:])[0].sum(), [leaves[index]])
        (want,) = torch.autograd.grad(formula(leaves[:3], leaves[3:])[0].sum(), [leaves[index]])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    attn, lse = parts((1, 2, 2, 3), 2)
    assert torch.autograd.gradcheck(lambda *x: merge(x[:2], x[2:]), (*attn, *lse))


@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("lse_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, lse_dtype, out_dtype):
    attn, lse = parts((2, 5, 3, 8), 3, dtype, lse_dtype)
    out, total = merge(attn, lse, out_dtype=out_dtype)
    expected_out, expected_total = formula(attn, lse)
    assert out.dtype == (out_dtype or dtype) and total.dtype == lse_dtype
    in_fp32 = dtype != torch.float64 or lse_dtype != torch.float64
    eps = max(torch.finfo(out.dtype).eps, torch.finfo(torch.float32).eps if in_fp32 else 0)
    torch.testing.assert_close(out.double(), expected_out, rtol=eps, atol=4 * eps)
    lse_eps = torch.finfo(lse_dtype).eps
    torch.testing.assert_close(total.double(), expected_total, rtol=4 * lse_eps, atol=4 * lse_eps)
    incoming = random(out.shape, out.dtype, seed=5), random(total.shape, total.dtype, seed=6)
    got = torch.autograd.grad((out, total), (*attn, *lse), incoming)
    want = torch.autograd.grad((expected_out, expected_total), (*attn, *lse), [x.double() for x in incoming])
    for g, w, leaf in zip(got, want, (*attn, *lse), strict=True):
        assert g.dtype == leaf.dtype
        grad_eps = max(torch.finfo(leaf.dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(g.double(), w.double(), rtol=2 * grad_eps, atol=16 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("strides", ["heads_first", "packed", "wide", "last_not_unit", "reversed_batch"])
def test_strides(strides):
    attn, lse = parts((3, 5, 2, 8), 3, torch.float32, requires_grad=False)
    expected = merge(attn, lse)
    strided_attn = [with_strides(x, strides).requires_grad_() for x in attn]
    strided_lse = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in lse]
    got = merge(strided_attn, strided_lse)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert got[0].is_contiguous() and got[1].is_contiguous()
    # A gradient with any strides, dense gradients of all inputs.
    incoming = random(got[0].shape, seed=9)
    grads = torch.autograd.grad(got[0], (*strided_attn, *strided_lse), with_strides(incoming, strides))
    leaves = [x.detach().requires_grad_() for x in (*attn, *lse)]
    want = torch.autograd.grad(merge(leaves[:3], leaves[3:])[0], leaves, incoming)
    assert all(torch.equal(g, w) and g.is_contiguous() for g, w in zip(grads, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 23])
@pytest.mark.parametrize("dim", [64, 72, 320])
def test_bits_do_not_depend_on_strides(dim, n, dtype):
    """Of parts that lie alike several rows are worked on at once: with the same result as others."""
    attn, lse = parts((2, 7, 3, dim), n, dtype, requires_grad=False)
    lse[0][..., 1], attn[0][:, 1] = -torch.inf, torch.nan
    for i in range(n):
        lse[i][..., 2], attn[i][:, 2] = -torch.inf, torch.nan
    wide, shifted = attn[0].new_zeros(2, 7, 3, dim + 8), attn[0].new_zeros(attn[0].numel() + 1)
    one_wide = [wide[..., :dim].copy_(attn[0]), *attn[1:]]
    one_unaligned = [*attn[:-1], shifted[1:].view_as(attn[0]).copy_(attn[-1])]
    incoming = random(attn[0].shape, dtype, seed=5), random(lse[0].shape, seed=6).float()
    results = []
    for each in (attn, one_wide, one_unaligned):
        results.append((*merge(each, lse), *torch.ops.xformers.merge_attentions_backward(*incoming, each, lse)))
    for result in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(result, results[0], strict=True))


def test_expanded_parts():
    x, lse = random((1, 5, 1, 8), requires_grad=True), random((1, 1, 5), seed=1, requires_grad=True)
    out, total = merge([x.expand(2, 5, 3, 8)] * 2, [lse.expand(2, 3, 5)] * 2)
    torch.testing.assert_close(out, x.expand(2, 5, 3, 8))
    torch.testing.assert_close(total, lse.expand(2, 3, 5) + torch.tensor(2.0).log())
    dx, dlse = torch.autograd.grad((out.sum() + total.sum()), (x, lse))
    torch.testing.assert_close(dx, torch.full_like(x, 6.0))
    torch.testing.assert_close(dlse, torch.full_like(lse, 6.0))


def test_parts_that_saw_no_key_count_for_nothing():
    attn, lse = parts((2, 4, 3, 8), 3, torch.float32, requires_grad=False)
    attn[1][:, 2] = torch.nan  # garbage where the lse says that no key was seen
    lse[1][..., 2] = -torch.inf
    for i in range(3):
        lse[i][..., 3] = -torch.inf  # no part saw a key
        attn[i][:, 3] = torch.nan
    leaves = [x.requires_grad_() for x in (*attn, *lse)]
    out, total = merge(leaves[:3], leaves[3:])
    expected_out, expected_lse = formula([attn[0], attn[2]], [lse[0], lse[2]])
    torch.testing.assert_close(out[:, 2].double(), expected_out[:, 2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total[..., 2].double(), expected_lse[..., 2], rtol=1e-6, atol=1e-6)
    assert (out[:, 3] == 0).all() and (total[..., 3] == -torch.inf).all()
    grads = torch.autograd.grad((out, total), leaves, (torch.randn_like(out), torch.randn_like(total)))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[1][:, 2] == 0).all() and (grads[4][..., 2] == 0).all()
    assert all((g[:, 3] == 0).all() for g in grads[:3]) and all((g[..., 3] == 0).all() for g in grads[3:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 30])
@pytest.mark.parametrize("dim", [5, 64])
def test_nan_stays_nan(dim, n, dtype):
    """In one part's lse: the row's out, lse and gradients; others are untouched, a part without keys adds nothing."""
    attn, lse = parts((2, 6, 3, dim), n, dtype, requires_grad=False)
    clean = [x.clone() for x in lse]
    lse[1][:, 0, 2] = torch.nan
    lse[0][:, 0, 2] = -torch.inf
    inputs = [x.requires_grad_() for x in attn + lse]
    out, total = merge(attn, lse)
    torch.autograd.backward([out, total], [torch.ones_like(out), torch.ones_like(total)])
    assert bool(out[:, 2, 0].isnan().all()) and bool(total[:, 0, 2].isnan().all())
    assert bool(attn[1].grad[:, 2, 0].isnan().all()) and bool(lse[1].grad[:, 0, 2].isnan().all())
    assert bool((attn[0].grad[:, 2, 0] == 0).all()) and bool((lse[0].grad[:, 0, 2] == 0).all())
    expected_out, expected_total = merge([x.detach() for x in attn], clean)
    others = torch.ones(6, 3, dtype=torch.bool)
    others[2, 0] = False
    assert torch.equal(out[:, others], expected_out[:, others])
    assert torch.equal(total.transpose(1, 2)[:, others], expected_total.transpose(1, 2)[:, others])
    assert all(not x.grad[:, others].isnan().any() for x in inputs[:n])


def test_lses_far_apart():
    attn, lse = parts((1, 3, 1, 4), 2, torch.float32, requires_grad=False)
    out, total = merge(attn, [lse[0] + 1e4, lse[1] - 1e4])
    assert torch.equal(out, attn[0]) and torch.equal(total, lse[0] + 1e4)


def test_without_lse():
    attn, lse = parts((2, 5, 3, 8), 2, torch.float32, requires_grad=False)
    out, total = merge(attn, lse, write_lse=False)
    assert torch.equal(out, merge(attn, lse)[0]) and total.shape == (0,)
    with torch.no_grad():
        assert merge([x.requires_grad_() for x in attn], lse, write_lse=False)[0].grad_fn is None


@pytest.mark.parametrize("dim", [1, 4, 40, 100, 300, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_head_dims(dtype, dim):
    attn, lse = parts((2, 3, 2, dim), 3, dtype)
    out, _ = merge(attn, lse)
    expected, _ = formula(attn, lse)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=4 * eps)
    incoming = random(out.shape, dtype, seed=5)
    got = torch.autograd.grad(out, (*attn, *lse), incoming)
    want = torch.autograd.grad(expected, (*attn, *lse), incoming.double())
    bound = max(eps, 1e-6 if dtype == torch.bfloat16 else eps) * dim**0.5
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w.double(), rtol=4 * eps, atol=16 * bound)


def test_empty_batch_and_rows():
    for shape in ((0, 5, 3, 8), (2, 0, 3, 8), (2, 5, 0, 8)):
        attn, lse = parts(shape, 2)
        out, total = merge(attn, lse)
        assert out.shape == shape and total.shape == lse_shape(shape)
        grads = torch.autograd.grad(out.sum() + total.sum(), (*attn, *lse))
        assert [g.shape for g in grads] == [x.shape for x in (*attn, *lse)]


def test_many_rows_use_all_threads_alike():
    attn, lse = parts((2, 512, 8, 128), 2, torch.float32)
    out, total = merge(attn, lse)
    expected_out, expected_total = formula(attn, lse)
    torch.testing.assert_close(out.double(), expected_out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.double(), expected_total, rtol=1e-6, atol=1e-6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(merge(attn, lse)[0], out)
    finally:
        torch.set_num_threads(before)


def split_attention(q, k, v, bounds, **options):
    chunks = [
        forward(q, k[:, a:b], v[:, a:b], need_lse=True, **options) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return merge([out for out, _, _ in chunks], [lse for _, lse, _ in chunks])


@pytest.mark.parametrize("heads", [(3,), (2, 2)], ids=["4d", "5d"])
def test_parts_of_the_keys_make_attention_over_all(heads):
    q, k, v = qkv(batch=2, nq=6, nk=23, heads=heads, dtype=torch.float64)
    out, lse = split_attention(q, k, v, [0, 5, 6, 23])
    whole_out, whole_lse, _ = forward(q, k, v, need_lse=True)
    torch.testing.assert_close(out, whole_out, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-13, atol=1e-13)
    incoming = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad((out, lse), (q, k, v), incoming)
    want = torch.autograd.grad((whole_out, whole_lse), (q, k, v), incoming)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_wide_parts(dtype):
    """Partial results in fp32: all three gradients as exact as those of one call."""
    inputs = qkv(batch=2, nq=6, nk=40, dtype=dtype)
    out, lse = split_attention(*inputs, [0, 13, 40], out_dtype=torch.float32)
    whole = forward(*inputs, out_dtype=torch.float32, need_lse=True)[:2]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = forward(*exact_inputs, need_lse=True)[:2]
    incoming = random(out.shape, seed=3).to(dtype).float(), random(lse.shape, seed=4)
    got = torch.autograd.grad((out, lse), inputs, incoming)
    whole_grads = torch.autograd.grad(whole, inputs, incoming)
    truth = torch.autograd.grad(exact, exact_inputs, [x.double() for x in incoming])
    for g, w, t in zip(got, whole_grads, truth, strict=True):
        error, whole_error = (g.double() - t).abs().max(), (w.double() - t).abs().max()
        assert error <= 3 * whole_error + 4 * torch.finfo(dtype).eps * t.abs().max()
    torch.testing.assert_close(out.double(), exact[0], rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_stacked_gradients_are_not_copied():
    """Stacked parts come as views, and their gradients leave as views of one tensor."""
    attn = random((3, 2, 5, 3, 8), requires_grad=True)
    lse = random((3, 2, 3, 5), seed=1, requires_grad=True)
    seen = []
    handles = [x.register_hook(lambda grad: seen.append(grad.untyped_storage().data_ptr())) for x in (attn, lse)]
    chunks = torch.ops.xformers.unbind(attn, 0), torch.ops.xformers.unbind(lse, 0)
    for chunk in (*chunks[0], *chunks[1]):
        chunk.register_hook(lambda grad: seen.append(grad.untyped_storage().data_ptr()))
    out, total = merge(*chunks)
    grads = torch.autograd.grad((out, total), (attn, lse), (torch.randn_like(out), torch.randn_like(total)))
    assert len(handles) == 2 and len(seen) == 8 and len(set(seen)) == 2
    assert {g.untyped_storage().data_ptr() for g in grads} == set(seen)


@pytest.mark.parametrize("layout", ["4d", "5d"])
def test_devices_without_a_kernel(layout):
    """The formula that they run gives what the kernel gives. Any of them stands for all."""
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA)
    attn, lse = parts(LAYOUTS[layout], 3, requires_grad=False)
    lse[0][..., 1], attn[0][:, 1] = -torch.inf, torch.nan
    lse[0][..., 2] = lse[1][..., 2] = lse[2][..., 2] = -torch.inf
    want = merge(attn, lse)
    got = merge.default.redispatch(elsewhere, attn, lse)
    short = merge.default.redispatch(elsewhere, attn, lse, False, torch.float32)
    assert short[0].dtype == torch.float32 and short[1].shape == (0,)
    incoming = torch.randn_like(want[0]), torch.randn_like(want[1])
    backward = torch.ops.xformers.merge_attentions_backward
    want += backward(*incoming, attn, lse)
    got += backward.default.redispatch(elsewhere, *incoming, attn, lse)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


BAD = {
    "no parts": (lambda a, s: ([], []), "attn is empty, expected one part or more"),
    "counts": (lambda a, s: (a, s[:2]), "lse is 2 parts, expected 3 like attn"),
    "ndim": (lambda a, s: ([x[0] for x in a], s), r"attn\[0\] is \[5, 3, 8\] fp32 cpu, expected \[batch, seqlen"),
    "lse ndim": (lambda a, s: (a, [x[0] for x in s]), r"lse\[0\] is \[3, 5\] fp32 cpu, expected \[2, 3, 5\]"),
    "padded lse": (lambda a, s: (a, [torch.cat([x, x], -1) for x in s]), r"lse\[0\] is \[2, 3, 10\].*slice off its"),
    "chunk shape": (lambda a, s: ([*a[:2], a[2][..., :7]], s), r"attn\[2\] is \[2, 5, 3, 7\].*expected \[2, 5, 3, 8\]"),
    "chunk lse": (lambda a, s: (a, [*s[:2], s[2][..., :4]]), r"lse\[2\] is \[2, 3, 4\].*expected \[2, 3, 5\]"),
    "chunk dtype": (lambda a, s: ([*a[:2], a[2].double()], s), r"attn\[2\].dtype is fp64, expected fp32"),
    "chunk device": (lambda a, s: ([*a[:2], a[2].to("meta")], s), r"attn\[2\].device is meta, expected cpu"),
    "attn dtype": (lambda a, s: ([x.long() for x in a], s), r"attn\[0\].dtype is int64, expected fp32"),
    "lse dtype": (lambda a, s: (a, [x.half() for x in s]), r"lse\[0\].dtype is fp16, expected fp32 or fp64"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    change, message = BAD[name]
    attn, lse = parts((2, 5, 3, 8), 3, torch.float32, requires_grad=False)
    with pytest.raises(ValueError, match=message.replace(" cpu", f" {attn[0].device}")):
        merge(*change(attn, lse))


def test_more_errors():
    attn, lse = parts((2, 5, 3, 8), 2, torch.float32)
    with pytest.raises(ValueError, match="write_lse is False where a gradient is wanted, expected True"):
        merge(attn, lse, write_lse=False)
    with torch.no_grad(), pytest.raises(ValueError, match="output_dtype is int32"):
        merge(attn, lse, out_dtype=torch.int32)
    with torch.no_grad(), pytest.raises(ValueError, match="head_dim of 1 or more"):
        merge([x[..., :0] for x in attn], lse)
    backward = torch.ops.xformers.merge_attentions_backward
    attn, lse = [x.detach() for x in attn], [x.detach() for x in lse]
    with pytest.raises(ValueError, match="grad_out is"):
        backward(attn[0][..., :7], None, attn, lse)
    with pytest.raises(ValueError, match="grad_lse is"):
        backward(attn[0], lse[0][..., :4], attn, lse)
    with pytest.raises(ValueError, match="grad_lse.dtype is fp64"):
        backward(attn[0], lse[0].double(), attn, lse)


def test_double_backward_and_forward_mode_are_refused():
    attn, lse = parts((1, 2, 2, 3), 2)
    (grad,) = torch.autograd.grad(merge(attn, lse)[0].sum(), attn[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="merge_attentions_backward is not implemented"):
        grad.sum().backward()
    plain = [x.detach() for x in attn], [x.detach() for x in lse]
    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        torch.func.jvp(lambda x: merge([x, plain[0][1]], plain[1])[0], (plain[0][0],), (plain[0][0],))


def test_torch_func_and_compile():
    attn, lse = parts((2, 5, 3, 8), 2)
    want = torch.autograd.grad(merge(attn, lse)[0].square().sum(), (*attn, *lse))

    def loss(*x):
        return merge(x[:2], x[2:])[0].square().sum()

    got = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*(x.detach() for x in (*attn, *lse)))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*attn, *lse), (*attn, *lse))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
