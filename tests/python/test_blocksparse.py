"""The mechanism `blocksparse`: layouts against masked attention in fp64, masks beside them, what is refused."""

import copy
import io
import logging
import pickle

import mechanisms_reference as reference
import pytest
import torch
from xformers.components import build_multi_head_attention
from xformers.components.attention import BlockSparseAttention, build_attention
from xformers.components.attention import sparsity_config as configs
from xformers.components.attention.attention_patterns import layout_to_pattern

import xformers  # noqa: F401

BATCH, HEADS, DIM = 2, 3, 16
CONFIGS = {
    "dense": lambda b: configs.DenseSparsityConfig(HEADS, b),
    "fixed": lambda b: configs.FixedSparsityConfig(HEADS, b, True, num_different_global_patterns=4),
    "variable": lambda b: configs.VariableSparsityConfig(
        HEADS, b, local_window_blocks=[1, 2], attention="unidirectional"
    ),
    "bigbird": lambda b: configs.BigBirdSparsityConfig(HEADS, b, True, generator=torch.Generator().manual_seed(1)),
    "bslongformer": lambda b: configs.BSLongformerSparsityConfig(HEADS, b, attention="unidirectional"),
}


def inputs(seqlen, dtype=torch.float64, seqlen_k=None, requires_grad=False):
    generator = torch.Generator().manual_seed(2)
    lengths = (seqlen, seqlen_k or seqlen, seqlen_k or seqlen)
    tensors = [torch.randn(BATCH, HEADS, n, DIM, generator=generator, dtype=torch.float64) for n in lengths]
    return [t.to(dtype).requires_grad_(requires_grad) for t in tensors]


def build(layout, block_size, **options):
    return build_attention(
        {"name": "blocksparse", "layout": layout, "block_size": block_size, "num_heads": HEADS, **options}
    )


def elements(layout, block_size, seqlen, seqlen_k=None):
    return layout_to_pattern(layout, block_size)[:, :seqlen, : seqlen_k or seqlen]


def with_gradients(out, tensors):
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, tensors, weights)]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("block_size, seqlen", [(16, 128), (32, 250), (64, 300)])
@pytest.mark.parametrize("causal", [False, True])
def test_layouts(kind, block_size, seqlen, causal):
    """Output and gradients, the last block short or not, with a scale."""
    layout = CONFIGS[kind](block_size).make_layout(-(-seqlen // block_size) * block_size)
    keep = elements(layout, block_size, seqlen)
    keep = keep & reference.triangle(seqlen, seqlen) if causal else keep
    tensors = inputs(seqlen, requires_grad=True)
    got = with_gradients(build(layout, block_size, causal=causal)(*tensors, scale=0.5), tensors)
    q, k, v = tensors
    expected = with_gradients(reference.softmax_attention(0.5 * q, k, v, keep), tensors)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    """At most twice the error of the formula in the same dtype, and some units in the last place."""
    layout = CONFIGS["bigbird"](32).make_layout(256)
    keep, module = elements(layout, 32, 256), build(layout, 32)
    tensors = inputs(256, dtype)
    exact = reference.softmax_attention(*(t.double() for t in tensors), keep)
    out = module(*tensors)
    assert out.dtype == dtype
    own, plain = ((x.double() - exact).abs().max() for x in (out, reference.softmax_attention(*tensors, keep)))
    assert own <= 2 * plain + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("block_size", [32, 128])
def test_strictly_lower_layout(block_size):
    """0.0.2: the first block of queries sees nothing."""
    n = 384 // block_size
    layout = torch.ones(HEADS, n, n, dtype=torch.int64).tril(-1)
    tensors = inputs(384, torch.float32, requires_grad=True)
    got = with_gradients(build(layout, block_size)(*tensors, scale=0.125), tensors)
    assert got[0][:, :, :block_size].eq(0).all()
    exact = [t.detach().double().requires_grad_() for t in tensors]
    q, k, v = exact
    expected = with_gradients(reference.softmax_attention(q * 0.125, k, v, elements(layout, block_size, 384)), exact)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def test_all_ones_are_dense_attention():
    tensors = inputs(96, torch.float32)
    dense = build_attention({"name": "scaled_dot_product"})
    for causal in (False, True):
        out = build(torch.ones(HEADS, 3, 3), 32, causal=causal)(*tensors)
        dense.causal = causal
        expected = dense(*(t.flatten(0, 1) for t in tensors)).view_as(out)
        assert torch.allclose(out, expected, atol=1e-6)


def test_future_tokens_change_nothing():
    layout = configs.BSLongformerSparsityConfig(HEADS, 16, attention="unidirectional").make_layout(128)
    module, tensors = build(layout, 16, causal=True), inputs(128)
    changed = [torch.cat([t[:, :, :70], torch.randn_like(t[:, :, 70:])], 2) for t in tensors]
    out, other = module(*tensors), module(*changed)
    assert torch.equal(out[:, :, :70], other[:, :, :70]) and not torch.equal(out[:, :, 70:], other[:, :, 70:])


def test_one_layout_for_all_heads(caplog):
    layout = torch.ones(4, 4).tril()
    with caplog.at_level(logging.WARNING, "xformers"):
        module = build(layout, 16)
    assert "one layout [rows, columns] is used for all 3 heads" in caplog.text
    tensors = inputs(64)
    assert torch.equal(module(*tensors), build(layout.expand(HEADS, 4, 4), 16)(*tensors))


def test_masks_beside_the_layout():
    layout = CONFIGS["fixed"](16).make_layout(128)
    module, keep = build(layout, 16), elements(layout, 16, 128)
    q, k, v = inputs(128)
    mask = torch.rand(128, 128) > 0.3
    expected = reference.softmax_attention(q, k, v, keep & mask)
    added = torch.zeros(128, 128, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    for given in (mask, added, mask[None, None]):
        assert torch.allclose(module(q, k, v, att_mask=given), expected)
    there = torch.arange(128) < torch.tensor([[100], [128]])
    expected = reference.softmax_attention(q, k, v, keep & there[:, None, None])
    k, v = (t.masked_fill(~there[:, None, :, None], torch.nan) for t in (k, v))
    assert torch.allclose(module(q, k, v, key_padding_mask=there), expected)


def test_other_keys_than_queries():
    layout = torch.rand(HEADS, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    q, k, v = inputs(90, seqlen_k=150)
    expected = reference.softmax_attention(q, k, v, elements(layout, 32, 90, 150))
    assert torch.allclose(build(layout, 32)(q, k, v), expected)


def test_in_multi_head_attention():
    layout = CONFIGS["bigbird"](16).make_layout(64)
    options = {"name": "blocksparse", "layout": layout, "block_size": 16, "causal": True}
    module = build_multi_head_attention({"dim_model": HEADS * DIM, "num_heads": HEADS, "attention": options})
    x = torch.randn(BATCH, 60, HEADS * DIM, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    keep = elements(layout, 16, 60) & reference.triangle(60, 60)
    q, k, v = (
        p(x).view(BATCH, 60, HEADS, DIM).transpose(1, 2) for p in vars(module.in_proj_container)["_modules"].values()
    )
    expected = module.proj(reference.softmax_attention(q, k, v, keep).transpose(1, 2).flatten(2))
    assert torch.allclose(out, expected, atol=1e-5)
    padding = torch.arange(60) < torch.tensor([[40], [60]])
    assert not torch.equal(module(x, key_padding_mask=padding)[0], out[0])


def test_dropout_and_seeds():
    module, tensors = build(CONFIGS["fixed"](16).make_layout(64), 16, dropout=0.4), inputs(64, torch.float32)
    torch.manual_seed(0)
    first = module(*tensors)
    torch.manual_seed(0)
    assert torch.equal(first, module(*tensors)) and not torch.equal(first, module(*tensors))
    module.eval()
    assert torch.equal(module(*tensors), module(*tensors))


def test_copies_and_compile():
    module, tensors = build(CONFIGS["fixed"](16).make_layout(64), 16, causal=True), inputs(64, torch.float32)
    expected = module(*tensors)
    assert not module.state_dict()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), torch.load(file, weights_only=False))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for other in (*copies, compiled):
        assert torch.equal(other(*tensors), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    module, tensors = build(CONFIGS["fixed"](16).make_layout(64), 16), inputs(64, torch.float32)
    expected = module(*tensors)
    with torch.autocast("cpu", dtype):
        out = module(*tensors)
    assert out.dtype == dtype and torch.allclose(out.float(), expected, atol=0.02)


def test_no_matrix_of_scores():
    """Nothing of seqlen x seqlen elements, forward or backward."""
    seqlen = 4096
    layout = configs.BSLongformerSparsityConfig(1, 64).make_layout(seqlen)
    module = BlockSparseAttention(layout, 64)
    tensors = [torch.randn(1, 1, seqlen, 8, requires_grad=True) for _ in range(3)]
    with torch.profiler.profile(profile_memory=True) as profile:
        module(*tensors).sum().backward()
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len(sizes) > 4 and max(sizes) < seqlen * seqlen // 8


def test_what_is_refused():
    for size in (43, 24, 256):
        with pytest.raises(AssertionError, match=f"block_size is {size}, expected 16, 32, 64 or 128"):
            build(torch.ones(HEADS, 4, 4), size)
    with pytest.raises(AssertionError, match="layout is None"):
        BlockSparseAttention()
    with pytest.raises(AssertionError, match=r"layout has shape \[4\], expected \[heads, rows, columns\]"):
        build(torch.ones(4), 16)
    module = build(torch.ones(HEADS, 64, 64), 16)
    message = "BlockSparseAttention: sequence length is 1000, the layout covers 1024: inconsistent"
    with pytest.raises(AssertionError, match=message):
        module(*inputs(1000))
    with pytest.raises(AssertionError, match="key length is 1000, the layout covers 1024"):
        module(*inputs(1024, seqlen_k=1000))
    with pytest.raises(ValueError, match="layout is .* expected .*Fix: "):
        build(torch.ones(HEADS + 1, 4, 4), 16)(*inputs(64))
