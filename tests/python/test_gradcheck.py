"""Numerical differentiation in fp64, and what autograd may and may not do."""

import pytest
import torch
from attention_inputs import qkv, random
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention

attention_forward = torch.ops.xformers.attention_forward
STATE = torch.tensor([3, 4])
MASKS = [
    None,
    LowerTriangularMask(),
    LowerTriangularFromBottomRightMask(),
    LocalAttentionFromBottomRightMask(1, 2),
    BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3]),
]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_out_and_lse(mask, p):
    inputs = qkv(batch=1, nq=5, nk=7, heads=(2,), head_dim=3, head_dim_v=4, dtype=torch.float64)
    operands = mask.lower(torch.device("cpu"))[:4] if mask is not None else ()

    def attend(q, k, v):
        out, lse, _ = attention_forward(q, k, v, *operands, p=p, philox_state=STATE, need_lse=True)
        return out, lse

    assert torch.autograd.gradcheck(attend, inputs)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


# Keys in use, in ranges that lie apart or overlap, in pages that belong to one sequence or to several.
KEY_LAYOUTS = {
    "padded": dict(cu_seqlens_k=int32(0, 4, 8), seqused_k=int32(3, 2)),
    "gappy": dict(cu_seqlens_k=int32(5, 1), seqused_k=int32(2, 3)),
    "overlapping": dict(cu_seqlens_k=int32(1, 2), seqused_k=int32(4, 5)),
    "same": dict(cu_seqlens_k=int32(2, 2), seqused_k=int32(4, 4)),
    "one_empty": dict(cu_seqlens_k=int32(0, 0), seqused_k=int32(0, 4)),
    "all_empty": dict(cu_seqlens_k=int32(0, 0), seqused_k=int32(0, 0)),
    "paged": dict(seqused_k=int32(3, 4), page_table=int32([3, 0], [2, 1]), page_size=2),
    "shared_pages": dict(seqused_k=int32(4, 3), page_table=int32([3, 0], [3, 3]), page_size=2),
    "paged_gappy": dict(cu_seqlens_k=int32(1, 2), seqused_k=int32(3, 1), page_table=int32([3, 0], [2, 1]), page_size=2),
}


def used_rows(layout):
    """The rows of key that each sequence sees, in order."""
    starts = layout.get("cu_seqlens_k", int32(0, 0))
    for b, used in enumerate(layout["seqused_k"].tolist()):
        keys = range(int(starts[b]), int(starts[b]) + used)
        if "page_table" in layout:
            keys = [int(layout["page_table"][b, t // 2]) * 2 + t % 2 for t in keys]
        yield list(keys)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", KEY_LAYOUTS)
def test_key_layouts(name, causal, p):
    layout = dict(KEY_LAYOUTS[name], cu_seqlens_q=int32(0, 2, 5), p=p, philox_state=STATE)
    if causal:
        layout |= dict(window_right=0, bottom_right=True)
    inputs = qkv(batch=1, nq=5, nk=8, heads=(2,), head_dim=3, head_dim_v=4, dtype=torch.float64)

    def attend(q, k, v):
        out, lse, _ = attention_forward(q, k, v, **layout, need_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(attend, inputs)
    # The same as attention over a packed copy of the keys, to the bit.
    rows = list(used_rows(layout))
    lengths = torch.tensor([0] + [len(r) for r in rows])
    index = torch.tensor(sum(rows, []), dtype=torch.long)
    packed = {k: v for k, v in layout.items() if k not in ("seqused_k", "page_table", "page_size")}
    packed["cu_seqlens_k"] = lengths.cumsum(0).to(torch.int32)
    q, k, v = inputs
    expected = attention_forward(q, k[:, index], v[:, index], **packed, need_lse=True)
    got = attention_forward(*inputs, **layout, need_lse=True)
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    incoming = torch.randn_like(got[0])
    grads = torch.autograd.grad(got[0], inputs, incoming)
    for g, e in zip(grads, torch.autograd.grad(expected[0], inputs, incoming), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4,), (2, 2)], ids=["4d", "5d"])
def test_shared_keys_and_heads(dtype, heads):
    """Grouped-query attention over pages that sequences share: gradients of the one head, added up in fp32."""
    layout = dict(KEY_LAYOUTS["shared_pages"], cu_seqlens_q=int32(0, 2, 5))
    query = random((1, 5, *heads, 8), dtype, requires_grad=True)
    one_head = [random((1, 8, *heads[:-1], 1, 8), dtype, seed=i, requires_grad=True) for i in (1, 2)]
    key, value = (x.expand(1, 8, *heads, 8) for x in one_head)
    leaves = [query, *one_head]
    out = attention_forward(query, key, value, **layout)[0]
    incoming = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, incoming)
    again = attention_forward(query, key, value, **layout)[0]
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(again, leaves, incoming), grads, strict=True))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    k64, v64 = (x.expand(1, 8, *heads, 8) for x in exact[1:])
    truth = torch.autograd.grad(attention_forward(exact[0], k64, v64, **layout)[0], exact, incoming.double())
    for g, t in zip(grads, truth, strict=True):
        torch.testing.assert_close(g.double(), t, rtol=0, atol=16 * torch.finfo(dtype).eps * float(t.abs().max()))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_out_dtype(dtype, out_dtype):
    inputs = qkv(dtype=dtype)
    out, lse, _ = attention_forward(*inputs, out_dtype=out_dtype, need_lse=True)
    plain, plain_lse, _ = attention_forward(*inputs, need_lse=True)
    exact = attention_forward(*(x.double() for x in inputs))[0]
    assert out.dtype == out_dtype and torch.equal(lse, plain_lse)
    if dtype == out_dtype:
        assert torch.equal(out, plain)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    eps = max(torch.finfo(out_dtype).eps, 8 * torch.finfo(wide).eps)
    if dtype == torch.float32 or dtype == torch.float64 or dtype == out_dtype:
        torch.testing.assert_close(out.double(), exact, rtol=eps, atol=eps)
    else:  # closer to the truth than what is rounded to the inputs' dtype
        assert (out.double() - exact).abs().max() <= (plain.double() - exact).abs().max() + eps
    incoming = torch.randn(out.shape).to(dtype).to(out_dtype)
    grads = torch.autograd.grad(out, inputs, incoming)
    want = torch.autograd.grad(plain, inputs, incoming.to(dtype))
    for g, w in zip(grads, want, strict=True):
        assert g.dtype == dtype
        tolerance = 8 * max(torch.finfo(dtype).eps, torch.finfo(out_dtype).eps)
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


def test_gradient_that_reaches_lse_alone():
    inputs = qkv(dtype=torch.float64, head_dim=4)
    scores = torch.einsum("bqhd,bkhd->bhqk", inputs[0], inputs[1]) * 4**-0.5
    lse = attention_forward(*inputs, need_lse=True)[1]
    incoming = torch.randn_like(lse)
    got = torch.autograd.grad(lse, inputs, incoming)
    want = torch.autograd.grad(scores.logsumexp(-1), inputs[:2], incoming)
    for g, w in zip(got, (*want, torch.zeros_like(inputs[2])), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_quantised_keys_have_no_gradient():
    query = random((1, 3, 2, 16), torch.bfloat16, requires_grad=True)
    key = torch.zeros(1, 7, 2, 3, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="an input requires grad beside quantised key and value"):
        attention_forward(query, key, key)
    with torch.no_grad():
        out, lse, _ = attention_forward(query, key, key, need_lse=True)
    with pytest.raises(ValueError, match="key.dtype is int32 .quantised., expected a floating dtype where gradients"):
        torch.ops.xformers.attention_backward(out, query.detach(), key, key, out, lse)


def test_more_keys_than_offsets_can_count():
    """2^31 keys in all, since the sequences share them."""
    n, used = 2**12, 2**19
    query, key = torch.zeros(1, n, 1, 1), torch.zeros(1, 1, 1, 1).expand(1, used, 1, 1)
    layout = dict(
        cu_seqlens_q=torch.arange(n + 1, dtype=torch.int32),
        cu_seqlens_k=torch.zeros(n, dtype=torch.int32),
        seqused_k=torch.full((n,), used, dtype=torch.int32),
    )
    lse = torch.zeros(1, 1, n)
    with pytest.raises(ValueError, match="the sum of seqused_k is 2147483648, expected less than 2.31"):
        torch.ops.xformers.attention_backward(query, query, key, key, query, lse, **layout)


def test_autocast_leaves_quantised_keys():
    query = random((1, 3, 2, 16))
    key = torch.zeros(1, 7, 2, 3, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_forward(query, key, key)[0].dtype == torch.bfloat16
        assert attention_forward(query, key, key, out_dtype=torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("heads", [(), (2,), (2, 2)], ids=["3d", "4d", "5d"])
def test_tensor_bias(heads):
    inputs = qkv(batch=2, nq=3, nk=4, heads=heads, head_dim=3, dtype=torch.float64)
    bias = random((2, *heads, 3, 4), torch.float64, seed=5, requires_grad=True)
    assert torch.autograd.gradcheck(memory_efficient_attention, (*inputs, bias))


@pytest.mark.parametrize("index", range(4))
def test_only_one_input_requires_grad(index):
    inputs = [*qkv(nq=3, nk=4, dtype=torch.float64), random((2, 3, 3, 4), torch.float64, seed=5, requires_grad=True)]
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)[index]
    leaves = [x.detach().requires_grad_(i == index) for i, x in enumerate(inputs)]
    memory_efficient_attention(*leaves).sum().backward()
    assert torch.equal(leaves[index].grad, expected)
    assert all(x.grad is None for i, x in enumerate(leaves) if i != index)


def test_nothing_is_recorded_where_nothing_requires_grad():
    query, key, value = qkv(requires_grad=False)
    assert memory_efficient_attention(query, key, value).grad_fn is None
    with torch.no_grad():
        assert memory_efficient_attention(*qkv()).grad_fn is None
    with torch.inference_mode():
        assert memory_efficient_attention(*qkv(requires_grad=False)).grad_fn is None


def test_graph_is_freed_and_kept_as_asked():
    inputs = qkv()
    out = memory_efficient_attention(*inputs)
    first = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=False))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), inputs)


def test_change_of_a_saved_input_is_noticed():
    inputs = qkv(requires_grad=False)
    leaf = inputs[0].clone().requires_grad_()
    out = memory_efficient_attention(leaf, *inputs[1:])
    inputs[1].add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()


def test_saved_tensor_hooks():
    inputs = [*qkv(), random((2, 3, 5, 7), seed=5, requires_grad=True)]
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x.clone(), lambda x: x):
        out = memory_efficient_attention(*inputs)
    assert {x.data_ptr() for x in inputs} <= {x.data_ptr() for x in packed}
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True))


def test_double_backward_is_refused():
    inputs = qkv()
    (grad,) = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="xformers::attention_backward is not implemented"):
        grad.sum().backward()


def test_torch_func():
    inputs = qkv(dtype=torch.float64)
    expected = torch.autograd.grad(memory_efficient_attention(*inputs).sum(), inputs)
    got = torch.func.grad(lambda *args: memory_efficient_attention(*args).sum(), argnums=(0, 1, 2))(
        *(x.detach() for x in inputs)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_runs_one_call_after_the_other():
    query, key, value = (torch.stack([x.detach(), -x.detach()]) for x in qkv())
    out = torch.func.vmap(memory_efficient_attention)(query, key, value)
    assert torch.equal(out, torch.stack([memory_efficient_attention(*x) for x in zip(query, key, value, strict=True)]))
    grad = torch.func.vmap(torch.func.grad(lambda *x: memory_efficient_attention(*x).sum()))(query, key, value)
    expected = torch.func.grad(lambda *x: memory_efficient_attention(*x).sum())(query[1], key[1], value[1])
    assert torch.equal(grad[1], expected)


def test_forward_mode_is_refused():
    inputs = [x.detach() for x in qkv()]
    with pytest.raises(NotImplementedError, match="forward-mode AD is asked for, expected reverse mode"):
        torch.func.jvp(memory_efficient_attention, tuple(inputs), tuple(inputs))
