"""Random arguments: a result of the right shape, or ValueError / NotImplementedError. Never anything else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xformers.ops.fmha import attn_bias as ab

from xformers.ops import fmha, memory_efficient_attention

REFUSALS = (ValueError, NotImplementedError)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64]
usual = st.sampled_from([torch.float32] * 12 + DTYPES)
sizes = st.sampled_from([0, 1, 2, 3, 8, 9])
shapes = st.one_of(st.tuples(sizes, sizes, sizes, sizes), st.lists(sizes, max_size=6).map(tuple))


@st.composite
def tensors(draw, shape=shapes):
    shape, dtype = draw(shape), draw(usual)
    device = draw(st.sampled_from(["cpu"] * 9 + ["meta"]))
    if draw(st.booleans()) and shape:  # expanded: strides 0
        base = tuple(1 if draw(st.booleans()) else n for n in shape)
        return torch.ones(base, dtype=dtype, device=device).expand(shape)
    return torch.ones(shape, dtype=dtype, device=device)


BIASES = st.one_of(
    st.none(),
    tensors(),
    st.just(ab.LowerTriangularMask()),
    st.just(ab.LowerTriangularFromBottomRightMask()),
    st.builds(ab.LocalAttentionFromBottomRightMask, st.integers(0, 4), st.integers(0, 4)),
    st.builds(ab.LowerTriangularMaskWithTensorBias, tensors().filter(torch.is_floating_point)),
    st.builds(ab.BlockDiagonalMask.from_seqlens, st.lists(sizes, max_size=3)),
    st.sampled_from(["causal", 3, object]),
)
OPS = [fmha.cutlass, fmha.flash, fmha.flash3, fmha.triton_splitk]


def attempt(fn, *args, **options):
    try:
        return fn(*args, **options)
    except REFUSALS as error:
        assert str(error)
        return None


@settings(max_examples=300)
@given(q=tensors(), k=tensors(), v=tensors(), bias=BIASES, p=st.sampled_from([0.0, 0.0, 0.5, 2.0]))
def test_any_tensors_give_a_result_or_any_refusal(q, k, v, bias, p):
    out = attempt(memory_efficient_attention, q, k, v, bias, p)
    if out is not None:
        assert out.shape == (*q.shape[:-1], v.shape[-1])
    op = OPS[(q.ndim + k.ndim + v.ndim) % len(OPS)].FwOp
    out = attempt(fmha.memory_efficient_attention_forward, q, k, v, bias, p, op=op)
    if out is not None:
        assert out.shape[:-1] == q.shape[:-1]


@settings(max_examples=200)
@given(data=st.data())
def test_nearly_right_tensors(data):
    """Right shapes, one size of one tensor changed: right again only where it happens to stay the same."""
    ndim = data.draw(st.sampled_from([3, 4, 5]))
    b, m, n, g, h, d, dv = (data.draw(st.integers(1, 4)) for _ in range(7))
    heads = {3: [], 4: [h], 5: [g, h]}[ndim]
    all_shapes = [[b, m, *heads, d], [b, n, *heads, d], [b, n, *heads, dv], [b, *heads, m, n]]
    which = data.draw(st.integers(0, 3))
    position = data.draw(st.integers(0, len(all_shapes[which]) - 1))
    old = all_shapes[which][position]
    all_shapes[which][position] = data.draw(st.integers(0, 5))
    same = all_shapes[which][position] == old
    free = (which, position) == (2, ndim - 1) and all_shapes[which][position] > 0  # value's own head_dim
    q, k, v, bias = (torch.randn(shape, requires_grad=True) for shape in all_shapes)
    out = attempt(memory_efficient_attention, q, k, v, bias)
    assert (out is not None) == (same or free)
    if out is not None:
        out.sum().backward()


@settings(max_examples=300)
@given(data=st.data())
def test_operator_arguments_give_a_result_or_any_refusal(data):
    """The operator itself, below Python's checks."""
    numbers = st.one_of(st.none(), st.lists(st.integers(-3, 9), max_size=4))
    ints = {name: data.draw(numbers) for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")}
    options = {name: torch.tensor(x, dtype=torch.int32) for name, x in ints.items() if x is not None}
    if data.draw(st.booleans()):
        shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
        options["page_table"] = torch.full(shape, data.draw(st.integers(-2, 9)), dtype=torch.int32)
        options["page_size"] = data.draw(st.integers(-1, 5))
    options["window_left"], options["window_right"] = data.draw(st.integers(-2, 3)), data.draw(st.integers(-2, 3))
    options["num_splits"] = data.draw(st.integers(-1, 9))
    batch, nq, nk = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.integers(0, 5)), data.draw(st.integers(0, 9))
    q, k, v = (torch.randn(batch, n, 2, 8) for n in (nq, nk, nk))
    result = attempt(torch.ops.xformers.attention_forward, q, k, v, need_lse=True, **options)
    if result is not None:
        assert result[0].shape == q.shape and not result[0].isnan().any()


@settings(max_examples=150)
@given(attn=st.lists(tensors(), max_size=3), lse=st.lists(tensors(), max_size=3), write=st.booleans())
def test_merge_gives_a_result_or_any_refusal(attn, lse, write):
    attempt(fmha.merge_attentions, attn, lse, write)
    if attn and lse:
        attempt(fmha.merge_attentions, attn[0], lse[0], write)


@settings(max_examples=150)
@given(data=st.data())
def test_backward_by_hand_gives_gradients_or_any_refusal(data):
    base = [(2, 5, 3, 8), (2, 5, 3, 8), (2, 3, 5), (2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8)]
    args = [torch.ones(shape) for shape in base]
    which = data.draw(st.integers(0, 5))
    args[which] = data.draw(tensors())
    grads = attempt(fmha.memory_efficient_attention_backward, *args)
    if grads is not None:
        assert [x.shape for x in grads] == [x.shape for x in args[3:]]
