"""BlockSparseMask: what it builds, what attention makes of it, what it refuses. The matrix has it with everything."""

import pickle

import pytest
import torch
from attention_inputs import qkv, random
from attention_reference import check_attention
from devices import on_each_device  # noqa: F401  (every test runs on each)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn.attention.flex_attention import create_block_mask

from xformers.ops import BlockSparseMask, fmha, memory_efficient_attention

forward = torch.ops.xformers.attention_forward.default
backward = torch.ops.xformers.attention_backward.default


def blocks(n, size):
    return -(-n // size)


def random_layout(shape, density=0.5, seed=0):
    layout = torch.rand(shape, generator=torch.Generator().manual_seed(seed), device="cpu") < density
    return layout.to(torch.get_default_device())


def elements(layout, size, nq, nk):
    """Booleans [B, H, nq, nk]: every block written out."""
    layout = layout.bool().reshape((1,) * (4 - layout.ndim) + tuple(layout.shape))
    rows, columns = torch.arange(nq) // size[0], torch.arange(nk) // size[1]
    return layout[:, :, rows][..., columns]


def assert_same(got, expected, device):
    """The same bits; on a GPU, whose tiles and orders of sums differ, a few roundings of fp32."""
    torch.testing.assert_close(got, expected, **({"rtol": 0, "atol": 0} if device == "cpu" else {}))


def hidden(visible):
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)


def listed(mask):
    """(visible blocks by the list of keys, and by that of queries), which have to be the same."""
    by_keys, by_queries = set(), set()
    for rows, offsets, entries in (
        (by_keys, mask._key_offsets, mask._key_blocks),
        (by_queries, mask._query_offsets, mask._query_blocks),
    ):
        for b, of_batch in enumerate(offsets.tolist()):
            for h, of_head in enumerate(of_batch):
                for row, (first, last) in enumerate(zip(of_head, of_head[1:], strict=False)):
                    found = entries[first:last].tolist()
                    assert found == sorted(set(found))
                    rows.update((b, h, row, x) for x in found)
    assert by_keys == {(b, h, q, k) for b, h, k, q in by_queries}
    return by_keys


def of_blocks(mask):
    """A mask's lists, as the operator's arguments."""
    lowered = mask.lower(torch.get_default_device())._asdict()
    return {name: x for name, x in lowered.items() if name.startswith("block")}


# ---- against the formula ----
@settings(max_examples=40)
@given(data=st.data())
def test_any_layout(data):
    """Empty, full, one block, blind rows and columns, short last blocks, B and H of 1, grouped heads, bands."""
    draw = data.draw
    size = draw(st.sampled_from([(16, 16), (32, 32), (48, 48), (64, 64), (16, 64), (128, 16)]))
    nq, nk = draw(st.integers(1, 140)), draw(st.integers(1, 200))
    heads = draw(st.sampled_from([(), (3,), (2, 2)]))
    batch, num_heads = draw(st.sampled_from([1, 2])), heads[0] * heads[1] if len(heads) == 2 else sum(heads) or 1
    layouts = draw(st.sampled_from(sorted({1, num_heads, heads[0] if heads else 1})))
    shape = (draw(st.sampled_from([1, batch])), layouts, blocks(nq, size[0]), blocks(nk, size[1]))
    kind = draw(st.sampled_from(["empty", "full", "one", "random", "blind row", "blind column"]))
    layout = random_layout(shape, 0.4, draw(st.integers(0, 99)))
    if kind in ("empty", "one"):
        layout[:] = False
    if kind == "full":
        layout[:] = True
    if kind == "one":
        layout[..., -1, -1] = True
    if kind == "blind row":
        layout[..., 0, :] = False
    if kind == "blind column":
        layout[..., 0] = False
    mask = BlockSparseMask(layout, size)
    assert listed(mask) == {tuple(i) for i in layout.nonzero().tolist()}
    visible = elements(layout, size, nq, nk)
    if len(heads) == 2 and layouts == heads[0]:
        visible = visible.repeat_interleave(heads[1], 1)
    i, j = torch.arange(nq)[:, None], torch.arange(nk)[None, :]
    band = draw(st.sampled_from(["none", "causal", "bottom right", "window"]))
    if band == "causal":
        mask, visible = mask.make_causal(), visible & (j <= i)
    if band == "bottom right":
        mask, visible = mask.make_causal_from_bottomright(), visible & (j <= i + nk - nq)
    if band == "window":
        mask, visible = mask.make_local_attention(20), visible & (j <= i) & (j > i - 20)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    inputs = qkv(batch, nq, nk, heads, 16, dtype=dtype, seed=draw(st.integers(0, 9)))
    wide = dtype in (torch.float32, torch.float64)  # an lse of 16 bits has an allowance of its own, in the matrix
    attend = fmha.memory_efficient_attention_partial if wide else memory_efficient_attention
    check_attention(lambda q, k, v, _: attend(q, k, v, mask), *inputs, bias=hidden(visible))


@settings(max_examples=25)
@given(
    nq=st.integers(1, 100),
    nk=st.integers(1, 130),
    size=st.sampled_from([16, (16, 32), 48, 64, (128, 64)]),
    shape=st.sampled_from([(), (2,), (2, 2), (2, 1)]),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    seed=st.integers(0, 99),
)
def test_from_mask_is_exactly_its_mask(nq, nk, size, shape, density, seed):
    given_mask = random_layout((*shape, nq, nk), density, seed)
    mask = BlockSparseMask.from_mask(given_mask, size)
    full = given_mask.reshape((1,) * (2 - len(shape)) + given_mask.shape).expand(2, 2, nq, nk)
    assert torch.equal(mask.materialize((2, 2, nq, nk), device=None) == 0, full)
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, mask), *qkv(2, nq, nk, (2,)), bias=hidden(full)
    )


@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 256])
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_at_every_head_dim(head_dim, size, dtype):
    layout = random_layout((2, blocks(150, size), blocks(170, size)), 0.4, 3)
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, BlockSparseMask(layout, size)),
        *qkv(1, 150, 170, (2,), head_dim, dtype=dtype),
        bias=hidden(elements(layout, (size, size), 150, 170)),
    )


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_permuting_key_blocks_with_keys_changes_nothing(seed):
    query, key, value = qkv(1, 70, 128, (2,), requires_grad=False, dtype=torch.float64, seed=seed)
    layout = random_layout((2, blocks(70, 16), 8), 0.5, seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed), device="cpu").to(query.device)
    rows = (order[:, None] * 16 + torch.arange(16)).flatten()
    plain = memory_efficient_attention(query, key, value, BlockSparseMask(layout, 16))
    permuted = memory_efficient_attention(query, key[:, rows], value[:, rows], BlockSparseMask(layout[..., order], 16))
    torch.testing.assert_close(plain, permuted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("of_groups", [False, True])
@pytest.mark.parametrize("nq", [1, 3, 100])
def test_layouts_of_groups_are_those_of_their_heads(nq, of_groups, device):
    query = random((2, nq, 2, 3, 16), seed=1, requires_grad=True)
    key, value = (random((2, 90, 2, 1, 16), seed=s).expand(2, 90, 2, 3, 16).requires_grad_() for s in (2, 3))
    layout = random_layout((2, 2 if of_groups else 1, blocks(nq, 16), 6), 0.5, 4)
    each = layout.repeat_interleave(3 if of_groups else 6, 1)
    results = []
    for one in (layout, each):
        out = memory_efficient_attention(query, key, value, BlockSparseMask(one, 16))
        results.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value))))
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, device)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 4))
def test_disjoint_layouts_merge_to_their_union(seed, parts):
    inputs = qkv(1, 50, 100, (2,), requires_grad=False, dtype=torch.float64, seed=seed)
    whose = torch.randint(-1, parts, (1, 2, 4, 7), generator=torch.Generator().manual_seed(seed), device="cpu")
    whose = whose.to(torch.get_default_device())
    masks = [BlockSparseMask(whose == part, 16) for part in range(parts)]
    results = [fmha.memory_efficient_attention_partial(*inputs, mask) for mask in masks]
    merged = fmha.merge_attentions([out for out, _ in results], [lse for _, lse in results])
    expected = fmha.memory_efficient_attention_partial(*inputs, BlockSparseMask(whose >= 0, 16))
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


def test_all_ones_are_no_mask(device):
    inputs = qkv(1, 130, 200, (2,), 32)
    grads = []
    for bias in (None, BlockSparseMask(torch.ones(3, 4).int(), 64)):
        out = memory_efficient_attention(*inputs, bias)
        grads.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for got, expected in zip(*grads, strict=True):
        assert_same(got, expected, device)


def test_blind_rows():
    inputs = qkv(1, 40, 48, (1,))
    layout = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    out, lse = fmha.memory_efficient_attention_partial(*inputs, BlockSparseMask(layout, 16))
    assert (out[:, 16:32] == 0).all() and (lse[..., 16:32] == -torch.inf).all()
    grad = torch.autograd.grad(out.sum() + lse[..., :16].sum(), inputs)
    assert (grad[0][:, 16:32] == 0).all() and all(g.isfinite().all() for g in grad)


# ---- constructors ----
def test_from_indices_takes_any_order_and_counts_once():
    indices = torch.tensor([[[[2, 0, 2, -1], [-1, -1, -1, -1], [3, 1, 0, 2]]]], dtype=torch.int32)
    expected = torch.tensor([[[[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]]]).bool()
    mask = BlockSparseMask.from_indices(indices, num_key_blocks=4, block_size=16)
    assert torch.equal(mask.layout, expected)
    counts = torch.tensor([[[3, 0, 4]]], dtype=torch.int32)
    counted = BlockSparseMask.from_indices(indices.clamp(min=0), counts, num_key_blocks=4, block_size=16)
    assert torch.equal(counted.layout, expected) and counted.density().item() == 6 / 12


def test_from_bsr():
    dense = torch.zeros(32, 48)
    dense[0, 20], dense[17, 40], dense[18, 2] = 1, 1, 1
    bsr = dense.to_sparse_bsr((16, 16))
    mask = BlockSparseMask.from_bsr(bsr.crow_indices(), bsr.col_indices(), num_key_blocks=3, block_size=16)
    assert torch.equal(mask.layout, torch.tensor([[[[0, 1, 0], [1, 0, 1]]]]).bool())
    heads = BlockSparseMask.from_bsr(
        torch.tensor([[0, 1, 2], [0, 2, 2]]), torch.tensor([[1, 0], [2, 0]]), num_key_blocks=3, block_size=(16, 32)
    )
    assert torch.equal(heads.layout[0, 1], torch.tensor([[1, 0, 1], [0, 0, 0]]).bool())
    assert heads.block_size == (16, 32)


@pytest.mark.parametrize("size", [16, 128])
def test_from_flex(size, device):
    def sees(b, h, q, k):
        return (q >= k) & ((k < 20) | (q - k < 40 + 30 * h))

    flex = create_block_mask(sees, 1, 2, 150, 170, device=device, BLOCK_SIZE=size)
    mask = BlockSparseMask.from_flex(flex)
    q, k = torch.arange(150)[:, None], torch.arange(170)[None, :]
    expected = torch.stack([sees(0, h, q, k) for h in range(2)])[None]
    assert torch.equal(mask.materialize((1, 2, 150, 170), device=None) == 0, expected)
    check_attention(
        lambda q, k, v, _: memory_efficient_attention(q, k, v, mask), *qkv(1, 150, 170, (2,)), bias=hidden(expected)
    )


def test_sparse_tensors_are_masks():
    mask = random_layout((2, 50, 60), 0.3)
    built = BlockSparseMask.from_mask(mask.to_sparse(), 16)
    assert torch.equal(built.materialize((2, 50, 60), device=None) == 0, mask)


def test_bands_and_biases_share_the_lists():
    mask = BlockSparseMask(random_layout((4, 4)), 16)
    for other in (mask.make_causal(), mask.make_local_attention(3), mask.add_bias(torch.zeros(1, 1, 64, 64))):
        assert other._key_blocks is mask._key_blocks and other is not mask
    assert mask.make_causal_from_bottomright().make_local_attention(3)._band == (2, 0, True)


def test_lists_are_small(device):
    """16 bytes per visible block and per row and column of blocks at most, and no tensor of elements. On a GPU, where
    nobody waits to learn how many are visible, per block."""
    layout = random_layout((4, 256, 200), 0.1)
    mask = BlockSparseMask(layout, 16)
    size = sum(x.numel() * x.element_size() for x in mask._lists() if x is not None)
    blocks = int(layout.sum()) if device == "cpu" else layout.numel()
    assert size <= 16 * (blocks + 4 * (256 + 200))


def test_survives_pickle_and_meta():
    mask = pickle.loads(pickle.dumps(BlockSparseMask.from_mask(random_layout((40, 50)), 16).make_causal()))
    assert mask.block_size == (16, 16) and mask._band == (-1, 0, False)
    assert mask.to("meta")._bits.is_meta


def test_made_under_inference_mode_it_trains():
    with torch.inference_mode():
        masks = [
            BlockSparseMask(random_layout((4, 5), 0.9), 16),
            BlockSparseMask.from_mask(random_layout((64, 80)), 16),
            BlockSparseMask.from_indices(torch.zeros(1, 1, 4, 2).int(), num_key_blocks=5, block_size=16),
        ]
    for mask in masks:
        inputs = qkv(1, 64, 80, (2,))
        memory_efficient_attention(*inputs, mask).sum().backward()


# ---- training, compilers ----
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(p):
    mask = BlockSparseMask.from_mask(random_layout((2, 20, 35), 0.4), 16).make_causal_from_bottomright()
    inputs = qkv(1, 20, 35, (2,), 3, dtype=torch.float64)
    lowered = mask.lower(torch.get_default_device())._asdict()
    options = {name: x for name, x in lowered.items() if name.startswith(("block", "window", "bottom"))}

    def attend(q, k, v, bias):
        out, lse, _ = forward(q, k, v, bias, **options, p=p, philox_state=torch.tensor([3, 4]), need_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(attend, (*inputs, random((1, 2, 20, 35), torch.float64, 9, requires_grad=True)))


@pytest.mark.parametrize("of_elements", [False, True])
def test_opcheck(of_elements):
    layout = random_layout((2, 40, 50), 0.5)
    mask = BlockSparseMask.from_mask(layout, 16) if of_elements else BlockSparseMask(layout[:, :3, :4], 16)
    options = of_blocks(mask)
    inputs = qkv(1, 40, 50, (2,))
    opcheck(forward, tuple(inputs), options)
    out, lse, _ = forward(*(x.detach() for x in inputs), **options, need_lse=True)
    given_inputs = [x.detach() for x in inputs]
    opcheck(backward, (torch.ones_like(out), *given_inputs, out, lse), options)


def test_compiles_once_for_all_contents():
    counter = CompileCounterWithBackend("aot_eager")

    def attend(q, k, v, mask):
        return memory_efficient_attention(q, k, v, mask)

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    inputs = qkv(1, 100, 120, (2,))
    for seed in range(4):
        indices = torch.randint(0, 8, (1, 2, 7, 3), generator=torch.Generator().manual_seed(seed), device="cpu")
        indices = indices.to(torch.get_default_device())
        mask = BlockSparseMask.from_indices(indices, num_key_blocks=8, block_size=16).make_causal()
        assert torch.equal(compiled(*inputs, mask), attend(*inputs, mask))
    for seed in range(3):  # layouts whose numbers of visible blocks are not the same
        mask = BlockSparseMask(random_layout((2, 7, 8), 0.35, seed), 16).make_causal()
        assert torch.equal(compiled(*inputs, mask), attend(*inputs, mask))
    assert counter.frame_count <= 2  # the second one's lists may be longer than the first one's


# ---- on a GPU ----
def test_numbers_out_of_range_are_clamped(device):
    if device == "cpu":
        pytest.skip("they are refused there")
    indices = torch.tensor([[[[9, -1, 1], [-4, 2, 2]]]])
    mask = BlockSparseMask.from_indices(indices, num_key_blocks=4, block_size=16)
    assert torch.equal(mask.layout, torch.tensor([[[[0, 1, 0, 1], [0, 0, 1, 0]]]]).bool())
    rows = BlockSparseMask.from_bsr(torch.tensor([0, 2, 9]), torch.tensor([-3, 7, 1]), num_key_blocks=4, block_size=16)
    assert torch.equal(rows.layout, torch.tensor([[[[1, 0, 0, 1], [0, 1, 0, 0]]]]).bool())


def test_masks_are_made_without_waiting(device):
    if device == "cpu":
        pytest.skip("the CPU waits for nobody")
    layout, elements_of_mask = random_layout((2, 8, 9), 0.3), random_layout((100, 130), 0.4)
    indices, bsr = torch.randint(0, 9, (1, 2, 8, 3)), (torch.tensor([0, 2, 3]), torch.tensor([0, 4, 1]))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        BlockSparseMask(layout, 16).make_causal()
        BlockSparseMask.from_mask(elements_of_mask, 16)
        BlockSparseMask.from_indices(indices, num_key_blocks=9, block_size=16)
        BlockSparseMask.from_bsr(*bsr, num_key_blocks=5, block_size=16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_deterministic_gradients_repeat(dtype, device):
    mask = BlockSparseMask(random_layout((2, 8, 9), 0.4), 32)
    inputs = qkv(1, 250, 270, (2,), 64, dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(memory_efficient_attention(*inputs, mask).sum(), inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], again, strict=True))


def test_graphs_replay_with_other_layouts(device):
    if device == "cpu":
        pytest.skip("graphs are CUDA's")
    inputs = qkv(1, 250, 270, (2,), 64, dtype=torch.bfloat16, requires_grad=False)
    layouts = [random_layout((2, 8, 9), density, 5) for density in (0.2, 0.7)]
    layout = layouts[0].clone()

    def attend():
        return memory_efficient_attention(*inputs, BlockSparseMask(layout, 32))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attend()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for other in layouts[::-1]:
        layout.copy_(other)
        graph.replay()
        assert torch.equal(out, attend())


# ---- refused ----
def message(call):
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        call()
    return str(caught.value)


def test_sizes_of_layouts():
    inputs = qkv(2, 2048, 2048, (8,), requires_grad=False)
    text = message(lambda: memory_efficient_attention(*inputs, BlockSparseMask(torch.ones(8, 32, 31).bool(), 64)))
    assert text == (
        "BlockSparseMask: layout is [8, 32, 31], expected [8, 32, 32] for 2048 queries and 2048 keys in blocks of 64.  "
        "Fix: give ceil(seqlen_k / 64) columns."
    )
    inputs = qkv(2, 60, 64, (4,), requires_grad=False)
    for shape, expected in (
        ((3, 4), "layout is [3, 4], expected [4, 4] for 60 queries"),
        ((3, 4, 4), "layout is [3, 4, 4], expected [4, 4, 4]"),
        ((3, 4, 4, 4), "layout is [3, 4, 4, 4], expected [2, 4, 4, 4]"),
        ((2, 1, 5, 4), "layout is [2, 1, 5, 4], expected [2, 1, 4, 4]"),
    ):
        mask = BlockSparseMask(torch.ones(shape).bool(), 16)
        assert expected in message(lambda mask=mask: memory_efficient_attention(*inputs, mask))


@pytest.mark.parametrize("size", [0, 8, 24, 1040, (16, 20)])
def test_sizes_of_blocks(size):
    bad = size if isinstance(size, int) else size[1]
    for build in (
        lambda: BlockSparseMask(torch.ones(2, 2).bool(), size),
        lambda: BlockSparseMask.from_mask(torch.ones(2, 2).bool(), size),
    ):
        assert message(build) == (f"BlockSparseMask: block_size is {bad}, expected a multiple of 16 from 16 to 1024.")


def only_checked_on_the_cpu(device):
    if device != "cpu":
        pytest.skip("on a GPU numbers out of range are clamped: nobody waits to look at them")


def test_indices_out_of_range(device):
    only_checked_on_the_cpu(device)
    indices = torch.zeros(1, 4, 18, 3, dtype=torch.int32)
    indices[0, 3, 17, 2] = 40
    text = message(lambda: BlockSparseMask.from_indices(indices, num_key_blocks=32, block_size=64))
    assert text == "BlockSparseMask: indices[0, 3, 17, 2] is 40, expected less than num_key_blocks = 32."
    counts = torch.full((1, 4, 18), 4)
    text = message(lambda: BlockSparseMask.from_indices(indices, counts, num_key_blocks=50, block_size=64))
    assert "counts[0, 0, 0] is 4, expected 0 ... 3" in text
    text = message(lambda: BlockSparseMask.from_indices(indices.float(), num_key_blocks=50, block_size=64))
    assert "indices.dtype is fp32" in text


@pytest.mark.parametrize(
    ("offsets", "columns", "says"),
    [
        ([0, 2, 1], [0, 1], "row_offsets[0, 0, 2] is 1"),
        ([0, 1, 3], [0, 1], "row_offsets[0, 0, 2] is 3"),
        ([-1, 1, 2], [0, 1], "row_offsets[0, 0, 1]"),
        ([0, 1, 2], [0, 4], "columns[0, 0, 1] is 4, expected less than num_key_blocks = 4"),
        ([0, 1, 2], [0, -1], "columns[0, 0, 1] is -1"),
    ],
)
def test_bad_bsr(offsets, columns, says, device):
    only_checked_on_the_cpu(device)
    build = lambda: BlockSparseMask.from_bsr(  # noqa: E731
        torch.tensor(offsets), torch.tensor(columns), num_key_blocks=4, block_size=16
    )
    assert says in message(build)


def test_kinds_of_layouts_and_masks():
    assert "layout.dtype is fp32" in message(lambda: BlockSparseMask(torch.ones(2, 2), 16))
    assert "layout is [2]" in message(lambda: BlockSparseMask(torch.ones(2).bool(), 16))
    assert "mask.dtype is fp32" in message(lambda: BlockSparseMask.from_mask(torch.ones(2, 2)))
    assert "window size" in message(lambda: BlockSparseMask(torch.ones(2, 2).bool(), 16).make_local_attention(0))


def test_not_beside_packed_or_paged_keys():
    options = of_blocks(BlockSparseMask(torch.ones(1, 1).bool(), 16))
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="beside packed or paged keys"):
        forward(*qkv(1, 5, 5, requires_grad=False), cu_seqlens_q=offsets, cu_seqlens_k=offsets, **options)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lists_that_lie_are_refused(device, data):
    """The operator reads no memory that is not there, whatever its lists hold."""
    only_checked_on_the_cpu(device)
    mask = BlockSparseMask.from_mask(random_layout((2, 40, 50), 0.5), 16)
    options = of_blocks(mask)
    name = data.draw(st.sampled_from(["block_key_offsets", "block_keys", "block_query_offsets", "block_bits_of"]))
    spoilt = options[name].clone()
    place = data.draw(st.integers(0, spoilt.numel() - 1))
    value = data.draw(st.integers(-(2**31), 2**31 - 1))
    assume(name != "block_bits_of" or value >= 0)
    spoilt.view(-1)[place] = value
    try:
        forward(*qkv(1, 40, 50, (2,), requires_grad=False), **{**options, name: spoilt})
    except ValueError as error:
        assert "BlockSparseMask" in str(error)


def test_named_operators_say_why_not():
    inputs = qkv(1, 64, 64, (2,), dtype=torch.bfloat16)
    mask = BlockSparseMask(torch.ones(4, 4).bool(), 16)
    for op in (fmha.cutlass.FwOp, fmha.flash.FwOp, fmha.flash3.FwOp, fmha.triton_splitk.FwOp):
        reasons = op.not_supported_reasons(fmha.Inputs(*inputs, mask))
        assert any("BlockSparseMask" in reason for reason in reasons)
    generic = (fmha.generic.FwOp, fmha.generic.BwOp)
    assert torch.equal(memory_efficient_attention(*inputs, mask, op=generic), memory_efficient_attention(*inputs, mask))
