"""The operators under upstream's names, against attention_forward and attention_backward."""

import pytest
import torch
from attention_inputs import qkv, random
from torch.library import opcheck

forward = torch.ops.xformers.attention_forward
backward = torch.ops.xformers.attention_backward
flash, flash3 = torch.ops.xformers_flash, torch.ops.xformers_flash3
cutlass_forward = torch.ops.xformers.efficient_attention_forward_cutlass
cutlass_backward = torch.ops.xformers.efficient_attention_backward_cutlass
simple_forward = torch.ops.xformer.memory_efficient_attention_forward

CU_Q, CU_K = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.tensor([0, 3, 4, 7], dtype=torch.int32)
USED_K = torch.tensor([2, 1, 3], dtype=torch.int32)
SCALE = 0.3


def equal(*pairs):
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def mask_options(is_causal, left, right):
    return dict(window_left=left, window_right=0 if is_causal else right, bottom_right=True)


MASKS = {"none": (False, -1, -1), "causal": (True, -1, -1), "window": (False, 2, 1), "causal_window": (True, 2, -1)}


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("mask", MASKS)
def test_flash(mask, packed):
    is_causal, left, right = MASKS[mask]
    q, k, v = qkv(batch=1 if packed else 2, requires_grad=False)
    options = dict(scale=SCALE, **mask_options(is_causal, left, right))
    offsets = [CU_Q, CU_K] if packed else [None, None]
    if packed:
        options |= dict(cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K)
    want, want_lse, _ = forward(q, k, v, **options, need_lse=True)
    unbatch = (lambda x: x[0]) if packed else (lambda x: x)
    inputs = [unbatch(x) for x in (q, k, v)]
    tail = [0.0, SCALE, is_causal, left, right]
    out, lse, state = flash.flash_fwd(*inputs, *offsets, None, 3, 4, *tail, False, None)
    equal((out, unbatch(want)), (lse, unbatch(want_lse)))
    assert state.shape == (2,) and state.dtype == torch.int64
    grad = torch.randn_like(out)
    grad_batch = grad[None] if packed else grad
    want_grads = backward(grad_batch, q, k, v, want, want_lse, **options)[:3]
    got_grads = flash.flash_bwd(False, grad, *inputs, out, lse, *offsets, 3, 4, *tail, None)
    equal(*zip(got_grads, map(unbatch, want_grads), strict=True))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_flash3(packed):
    q, k, v = qkv(batch=1 if packed else 2, requires_grad=False)
    inputs = [x[0] for x in (q, k, v)] if packed else [q, k, v]
    offsets = [CU_Q, CU_K] if packed else [None, None]
    out, lse, _ = flash3.flash_fwd(*inputs, *offsets, None, 3, 4, 0.0, SCALE, True)
    want = flash.flash_fwd(*inputs, *offsets, None, 3, 4, 0.0, SCALE, True, -1, -1, False, None)
    equal((out, want[0]), (lse, want[1]))
    grad = torch.randn_like(out)
    got = flash3.flash_bwd(False, grad, *inputs, out, lse, *offsets, 3, 4, SCALE, True)
    want = flash.flash_bwd(False, grad, *inputs, out, lse, *offsets, 3, 4, 0.0, SCALE, True, -1, -1, None)
    equal(*zip(got, want, strict=True))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_flash_with_fewer_key_heads(key_heads):
    q, k, v = random((2, 5, 4, 8)), random((2, 7, key_heads, 8), seed=1), random((2, 7, key_heads, 8), seed=2)
    full = [x.repeat_interleave(4 // key_heads, dim=2).requires_grad_() for x in (k, v)]
    out, lse, _ = flash.flash_fwd(q, k, v, None, None, None, 5, 7, 0.0, SCALE, False, -1, -1, False, None)
    want, want_lse, _ = forward(q, *full, scale=SCALE, need_lse=True)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(out)
    dq, dk, dv = flash.flash_bwd(
        False, grad, q, k, v, out, lse, None, None, 5, 7, 0.0, SCALE, False, -1, -1, None
    )  # fmt: skip
    q = q.requires_grad_()
    want = torch.autograd.grad(forward(q, *full, scale=SCALE)[0], (q, *full), grad)
    for got, expected in zip((dq, dk, dv), want, strict=True):
        if expected.shape != got.shape:
            expected = expected.unflatten(2, (key_heads, -1)).sum(3)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_flash_padded_and_paged_keys():
    q, k, v = qkv(batch=1, nk=12, requires_grad=False)
    rows = [x[0] for x in (q, k, v)]
    starts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    want = forward(q, k, v, cu_seqlens_q=CU_Q, cu_seqlens_k=starts, seqused_k=USED_K, scale=SCALE, bottom_right=True)[0]
    tail = [0.0, SCALE, False, -1, -1, False]
    equal((flash.flash_fwd(*rows, CU_Q, starts, USED_K, 3, 4, *tail, None)[0], want[0]))
    # The same rows as pages of 2 in another order; lengths by seqused_k, or by the differences of cu_seqlens_k.
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    pages = [x[0].unflatten(0, (6, 2))[order.argsort()].contiguous() for x in (k, v)]
    table = order.view(3, 2).to(torch.int32)
    equal((flash.flash_fwd(rows[0], *pages, CU_Q, None, USED_K, 3, 4, *tail, table)[0], want[0]))
    lengths = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    equal((flash.flash_fwd(rows[0], *pages, CU_Q, lengths, None, 3, 4, *tail, table)[0], want[0]))
    with pytest.raises(ValueError, match=r"expected \[pages, page_size, heads, head_dim\] beside block_tables"):
        flash.flash_fwd(*rows, CU_Q, None, USED_K, 3, 4, *tail, table)


def test_flash_dropout():
    q, k, v = qkv(requires_grad=False)
    arguments = [None, None, None, 5, 7, 0.4, SCALE, False, -1, -1, False, None]
    torch.manual_seed(3)
    out, lse, state = flash.flash_fwd(q, k, v, *arguments)
    torch.manual_seed(3)
    equal((flash.flash_fwd(q, k, v, *arguments)[0], out))
    assert not torch.equal(flash.flash_fwd(q, k, v, *arguments)[0], out)
    equal((forward(q, k, v, scale=SCALE, p=0.4, philox_state=state)[0], out))
    grad = torch.randn_like(out)
    got = flash.flash_bwd(False, grad, q, k, v, out, lse, None, None, 5, 7, 0.4, SCALE, False, -1, -1, state)
    want = backward(grad, q, k, v, out, lse, scale=SCALE, p=0.4, philox_state=state)
    equal(*zip(got, want[:3], strict=True))


def test_flash_gradients_in_one_buffer():
    qkv_tensor = random((2, 5, 3, 3, 8))
    q, k, v = qkv_tensor.unbind(2)
    out, lse, _ = flash.flash_fwd(q, k, v, None, None, None, 5, 5, 0.0, SCALE, False, -1, -1, False, None)
    arguments = (torch.randn_like(out), q, k, v, out, lse, None, None, 5, 5, 0.0, SCALE, False, -1, -1, None)
    apart, together = flash.flash_bwd(False, *arguments), flash.flash_bwd(True, *arguments)
    equal(*zip(together, apart, strict=True))
    assert torch.ops.xformers.get_stack_strides(list(together), 2) == list(qkv_tensor.stride())
    with pytest.raises(ValueError, match="key.shape"):
        flash.flash_bwd(True, out, q, k[:, :4], v[:, :4], out, lse, None, None, 5, 4, 0.0, SCALE, False, -1, -1, None)


def test_flash_errors():
    q, k, v = qkv(requires_grad=False)
    with pytest.raises(ValueError, match="query.heads is 3, expected a multiple of key.heads, 2"):
        flash.flash_fwd(
            q, k[:, :, :2], v[:, :, :2], None, None, None, 5, 7, 0.0, SCALE, False, -1, -1, False, None
        )  # fmt: skip
    q = q.requires_grad_()
    out = flash.flash_fwd(q, k, v, None, None, None, 5, 7, 0.0, SCALE, False, -1, -1, False, None)[0]
    with pytest.raises(RuntimeError, match="xformers_flash::flash_fwd is not implemented"):
        out.sum().backward()


# custom_mask_type, window_size -> the operator's mask
CUTLASS_MASKS = {
    "none": (0, None, {}),
    "top_left": (1, None, dict(window_right=0)),
    "bottom_right": (2, None, dict(window_right=0, bottom_right=True)),
    "top_left_window": (1, 3, dict(window_left=2, window_right=0)),
    "bottom_right_window": (2, 1, dict(window_left=0, window_right=0, bottom_right=True)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("mask", CUTLASS_MASKS)
def test_cutlass(mask, packed):
    mask_type, window, options = CUTLASS_MASKS[mask]
    q, k, v = qkv(batch=1 if packed else 2, requires_grad=False)
    options = dict(options, scale=SCALE)
    if packed:
        options |= dict(cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K)
    offsets = [CU_Q, CU_K, 3, 3] if packed else [None, None, None, None]
    out, lse, seed, offset, max_q, max_k = cutlass_forward(
        q, k, v, None, *offsets, 0.0, mask_type, True, scale=SCALE, window_size=window
    )
    want, want_lse, _ = forward(q, k, v, **options, need_lse=True)
    equal((out, want))
    assert (max_q, max_k) == ((3, 3) if packed else (5, 7)) and seed.ndim == offset.ndim == 0
    assert seed.dtype == offset.dtype == torch.int64
    if packed:
        assert lse.shape == (3, 3, 32)
        for b, (begin, end) in enumerate([(0, 2), (2, 2), (2, 5)]):
            equal((lse[b, :, : end - begin], want_lse[0, :, begin:end]))
            assert (lse[b, :, end - begin :] == torch.inf).all()
    else:
        assert lse.shape == (2, 3, 32)
        equal((lse[..., :5], want_lse))
        assert (lse[..., 5:] == torch.inf).all()
    grad = torch.randn_like(out)
    got = cutlass_backward(
        grad, q, k, v, None, out, *offsets[:2], max_q, max_k, lse, 0.0, seed, offset, mask_type, False,
        scale=SCALE, num_splits_key=2, window_size=window,
    )  # fmt: skip
    equal(*zip(got[:3], backward(grad, q, k, v, want, want_lse, **options)[:3], strict=True))


def test_cutlass_bias_and_its_gradient():
    q, k, v = qkv(requires_grad=False)
    bias = random((2, 3, 5, 7), seed=9)
    out, lse, seed, offset, _, _ = cutlass_forward(q, k, v, bias, None, None, None, None, 0.0, 1, True)
    want, want_lse, _ = forward(q, k, v, bias, window_right=0, need_lse=True)
    equal((out, want))
    grad = torch.randn_like(out)
    arguments = (grad, q, k, v, bias, out, None, None, 5, 7, lse, 0.0, seed, offset, 1)
    want = backward(grad, q, k, v, want, want_lse, bias, window_right=0, need_bias_grad=True)
    equal(*zip(cutlass_backward(*arguments, True), want[:4], strict=True))
    assert cutlass_backward(*arguments, False)[3].shape == (0,)
    with pytest.raises(ValueError, match="a tensor beside packed sequences"):
        cutlass_forward(q[:1], k[:1], v[:1], bias[:1], CU_Q, CU_K, 3, 3, 0.0, 0, True)


def test_cutlass_padded_keys_dropout_and_no_lse():
    q, k, v = qkv(batch=1, nk=12, requires_grad=False)
    starts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    layout = dict(cu_seqlens_q=CU_Q, cu_seqlens_k=starts, seqused_k=USED_K)
    torch.manual_seed(1)
    out, lse, seed, offset, _, _ = cutlass_forward(q, k, v, None, CU_Q, starts, 3, 4, 0.3, 2, seqlen_k=USED_K)
    assert lse.shape == (3, 3, 0)
    state = torch.stack([seed, offset])
    mask = dict(window_right=0, bottom_right=True)
    equal((out, forward(q, k, v, **layout, **mask, p=0.3, philox_state=state)[0]))
    q, k, v = qkv(requires_grad=False)
    out, lse, seed, offset, _, _ = cutlass_forward(q, k, v, None, None, None, None, None, 0.3, 0, True)
    grad, state = torch.randn_like(out), torch.stack([seed, offset])
    got = cutlass_backward(grad, q, k, v, None, out, None, None, 5, 7, lse, 0.3, seed, offset, 0, False)
    want = backward(grad, q, k, v, out, lse[..., :5], p=0.3, philox_state=state)
    equal(*zip(got[:3], want[:3], strict=True))


def test_cutlass_errors():
    q, k, v = qkv(batch=1, requires_grad=False)
    with pytest.raises(ValueError, match="custom_mask_type is 3, expected 0, 1 or 2"):
        cutlass_forward(q, k, v, None, None, None, None, None, 0.0, 3)
    with pytest.raises(ValueError, match="window_size is 2, expected None without a causal mask"):
        cutlass_forward(q, k, v, None, None, None, None, None, 0.0, 0, window_size=2)
    with pytest.raises(ValueError, match="max_seqlen_q is None, expected a length"):
        cutlass_forward(q, k, v, None, CU_Q, CU_K, None, None, 0.0, 0, True)
    out = cutlass_forward(q.requires_grad_(), k, v, None, None, None, None, None, 0.0, 0)[0]
    with pytest.raises(RuntimeError, match="efficient_attention_forward_cutlass is not implemented"):
        out.sum().backward()


@pytest.mark.parametrize("heads", [(), (3,), (2, 2)], ids=["3d", "4d", "5d"])
def test_simple_forward(heads):
    q, k, v = qkv(heads=heads, head_dim_v=5, requires_grad=False)
    bias = random((2, *heads, 5, 7), seed=3)
    equal((simple_forward(q, k, v), forward(q, k, v)[0]))
    equal((simple_forward(q, k, v, bias, scale=0.5), forward(q, k, v, bias, scale=0.5)[0]))
    equal((simple_forward(q, k, v, bias, None, None), forward(q, k, v, bias)[0]))
    torch.manual_seed(2)
    dropped = simple_forward(q, k, v, None, 0.5)
    torch.manual_seed(2)
    equal((simple_forward(q, k, v, p=0.5), dropped))
    assert dropped.shape == (2, 5, *heads, 5) and not torch.equal(dropped, forward(q, k, v)[0])


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck(packed):
    q, k, v = qkv(batch=1 if packed else 2, requires_grad=False)
    offsets = [CU_Q, CU_K] if packed else [None, None]
    rows = [x[0] for x in (q, k, v)] if packed else [q, k, v]
    flash_in = (*rows, *offsets, None, 3, 4, 0.0, SCALE, True, -1, -1, False, None)
    out, lse, state = flash.flash_fwd(*flash_in)
    opcheck(flash.flash_fwd.default, flash_in)
    bwd = (torch.randn_like(out), *rows, out, lse, *offsets, 3, 4, 0.0, SCALE, True, -1, -1, state)
    opcheck(flash.flash_bwd.default, (False, *bwd))
    opcheck(flash3.flash_fwd.default, flash_in[:11])
    opcheck(flash3.flash_bwd.default, (False, *bwd[:10], *bwd[11:13]))
    cutlass_in = (q, k, v, None, *offsets, 3, 4, 0.0, 2, True)
    out, lse, seed, offset, max_q, max_k = cutlass_forward(*cutlass_in)
    opcheck(cutlass_forward.default, cutlass_in)
    opcheck(
        cutlass_backward.default,
        (torch.randn_like(out), q, k, v, None, out, *offsets, max_q, max_k, lse, 0.0, seed, offset, 2, False),
    )
    if not packed:
        opcheck(simple_forward.default, (q, k, v))
