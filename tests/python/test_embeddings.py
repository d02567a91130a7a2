"""Embeddings of positions, words and patches against their formulas in fp64."""

import copy
import importlib
import math

import pytest
import torch
from blocks_reference import DTYPES, assert_close, random, wide
from devices import on_each_device  # noqa: F401
from xformers.components import PatchEmbeddingConfig, build_patch_embedding
from xformers.components.patch_embedding import ConditionalReshape, PatchToSequence
from xformers.components.positional_embedding import (
    LearnablePositionalEmbedding,
    RotaryEmbedding,
    SinePositionalEmbedding,
    VocabEmbedding,
    build_positional_embedding,
)
from xformers.components.positional_embedding.rotary import apply_rotary_pos_emb, rotate_half
from xformers.components.simplicial_embedding import SimplicialEmbedding, SimplicialEmbeddingConfig


@pytest.mark.parametrize(
    "module, name",
    [
        ("sine", "SinePositionalEmbedding"),
        ("vocab", "VocabEmbedding"),
        ("param", "LearnablePositionalEmbedding"),
        ("rotary", "RotaryEmbedding"),
    ],
)
def test_address(module, name):
    found = importlib.import_module(f"xformers.components.positional_embedding.{module}")
    assert getattr(found, name).__name__ == name


@pytest.mark.parametrize("dim", [6, 7])
def test_sine(dim):
    expected = torch.zeros(5, dim, dtype=torch.float64)
    for s in range(5):
        for d in range(dim):
            angle = s * 10000 ** (-2 * (d // 2) / dim)
            expected[s, d] = math.sin(angle) if d % 2 == 0 else math.cos(angle)
    layer = SinePositionalEmbedding(dim)
    x = random((2, 5, dim))
    assert_close(layer(x), x.double() + expected, scale=1.0)
    numbers = torch.arange(10).view(2, 5)
    assert_close(layer(numbers), numbers.double().unsqueeze(-1) + expected, dtype=torch.float32, scale=1.0)
    assert layer(random((1, 3, dim), torch.bfloat16)).dtype == torch.bfloat16
    far = layer(torch.zeros(1, 70000, dim))[0, -1]  # angles in fp64
    assert abs(far[0].item() - math.sin(69999)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_vocab(dtype):
    torch.manual_seed(0)
    layer = VocabEmbedding(dim_model=8, seq_len=6, vocab_size=11)
    assert list(layer.state_dict()) == ["position_embeddings.weight", "word_embeddings.weight"]
    ids = torch.tensor([[1, 10, 0, 3]], dtype=dtype)
    words, positions = layer.word_embeddings.weight, layer.position_embeddings.weight
    out = layer(ids)
    assert torch.equal(out, words[ids.long()] + positions[:4])
    out.sum().backward()
    assert words.grad.sum().item() == 32 and positions.grad[4:].abs().sum().item() == 0
    with pytest.raises(ValueError, match="expected at most 6 words"):
        layer(torch.zeros(1, 7, dtype=dtype))
    with pytest.raises(ValueError, match="ids.dtype is fp32"):
        layer(torch.zeros(1, 2))
    big = VocabEmbedding(64, 200, 500)
    big.init_weights(gain=2.0)
    assert abs(big.word_embeddings.weight.std().item() / 0.04 - 1) < 0.05


def test_vocab_dropout():
    layer, ids = VocabEmbedding(64, 50, 20, dropout=0.5), torch.zeros(4, 50, dtype=torch.long)
    assert 0.45 < (layer(ids) == 0).float().mean().item() < 0.55
    assert torch.equal(layer.eval()(ids), layer(ids))


@pytest.mark.parametrize("class_token", [False, True])
def test_learnable(class_token):
    layer = LearnablePositionalEmbedding(seq_len=5, dim_model=6, add_class_token=class_token)
    assert sorted(layer.state_dict()) == ["class_token"] * class_token + ["pos_emb"]
    assert layer.pos_emb.shape == (1, 5 + class_token, 6)
    x = random((2, 5, 6), requires_grad=True)
    before = x.detach().clone()
    out = layer(x)
    rows = torch.cat([torch.zeros(2, 1, 6), x], 1) if class_token else x
    assert torch.equal(out, rows + layer.pos_emb) and torch.equal(x.detach(), before)
    out.sum().backward()
    assert bool(layer.pos_emb.grad.eq(2).all()) and (not class_token or bool(layer.class_token.grad.eq(2).all()))
    assert layer(x[:, :3]).shape == (2, 3 + class_token, 6)  # a shorter input takes the first rows
    assert layer(torch.ones(2, 5)).shape == (2, 5 + class_token, 6)
    with pytest.raises(ValueError, match="expected at most 5 tokens"):
        layer(random((2, 6, 6)))


@pytest.mark.parametrize("name", ["sine", "vocab", "learnable"])
def test_built_by_name_and_copied(name):
    config = {"name": name, "dim_model": 8, "seq_len": 6, "vocab_size": 9, "dropout": 0.0, "add_class_token": False}
    layer = build_positional_embedding({k: v for k, v in config.items()})
    x = torch.zeros(2, 6, dtype=torch.long)
    assert layer(x).shape == (2, 6, 8)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("temperature", [None, 0.1, 1e-3])
def test_simplicial_chunks_sum_to_one_and_leave_the_input_alone(temperature):
    """0.0.11."""
    layer = SimplicialEmbedding.from_config(SimplicialEmbeddingConfig(L=4, temperature=temperature))
    x = random((2, 3, 20), requires_grad=True)
    before = x.detach().clone()
    out = layer(x)
    assert torch.equal(x.detach(), before)
    z = wide(x).view(2, 3, 4, 5) / (temperature or 1.0)
    expected = (z - z.logsumexp(-1, keepdim=True)).exp()
    assert_close(out, expected.flatten(-2), scale=1e3 if temperature == 1e-3 else 10.0)
    assert torch.allclose(out.view(2, 3, 4, 5).sum(-1), torch.ones(2, 3, 4))
    if temperature == 1e-3:  # near one-hot
        assert out.view(2, 3, 4, 5).max(-1).values.mean().item() > 0.98
    assert torch.autograd.gradcheck(layer, random((2, 8), torch.float64, 0, True))
    with pytest.raises(ValueError, match="multiple of L = 4"):
        layer(random((2, 3, 10)))


def test_patch_embedding():
    config = PatchEmbeddingConfig(in_channels=3, out_channels=8, kernel_size=3, stride=2, padding=1)
    layer = build_patch_embedding(config)
    assert list(layer.state_dict()) == ["1.weight", "1.bias"]
    assert isinstance(layer[0], ConditionalReshape) and isinstance(layer[2], PatchToSequence)
    images = random((2, 3, 6, 6))
    expected = torch.nn.functional.conv2d(
        images.double(), layer[1].weight.double(), layer[1].bias.double(), stride=2, padding=1
    )
    expected = expected.flatten(2).transpose(1, 2)
    assert_close(layer(images), expected, scale=10.0)
    tokens = images.flatten(2).transpose(1, 2)  # row by row
    assert_close(layer(tokens), expected, scale=10.0)
    assert layer(random((1, 3, 4, 8))).shape == (1, 8, 8)  # images need not be square
    with pytest.raises(ValueError, match="number of tokens is 35, expected a square"):
        layer(tokens[:, :35])
    with pytest.raises(NotImplementedError, match="pool_type"):
        build_patch_embedding({"in_channels": 3, "out_channels": 8, "kernel_size": 3, "stride": 2, "pool_type": "AVG"})


def plain_frequencies(dim, theta, kind="none", factor=1.0, length=8192.0, low=1.0, high=None):
    """The papers' formulas, pair by pair."""
    result = []
    for j in range(dim // 2):
        base = theta * factor ** (dim / (dim - 2)) if kind == "ntk" else theta
        frequency = base ** (-2 * j / dim)
        if kind == "linear":
            frequency /= factor
        if kind in ("yarn", "llama3"):
            upper = high or (32.0 if kind == "yarn" else 4.0)
            turns = length * frequency / (2 * math.pi)
            keep = min(max((turns - low) / (upper - low), 0.0), 1.0)
            frequency = frequency * keep + frequency / factor * (1 - keep)
        result.append(frequency)
    return torch.tensor(result, dtype=torch.float64)


SCALINGS = [
    None,
    {"kind": "linear", "factor": 4.0},
    {"kind": "ntk", "factor": 4.0},
    {"kind": "yarn", "factor": 8.0, "original_seq_len": 64},
    {"kind": "llama3", "factor": 8.0, "original_seq_len": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["kind"] if s else "none")
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rotary_scaling(theta, scaling):
    dim = 16
    layer = RotaryEmbedding(dim, theta=theta, scaling=scaling)
    options = dict(scaling or {})
    frequencies = plain_frequencies(
        dim,
        theta,
        options.get("kind", "none"),
        options.get("factor", 1.0),
        options.get("original_seq_len", 8192.0),
        options.get("low_freq_factor", 1.0),
        options.get("high_freq_factor"),
    )
    assert torch.allclose(layer.inv_freq.double().cpu(), frequencies.cpu(), rtol=1e-6)
    q, k = random((2, 3, 7, dim), requires_grad=True), random((2, 3, 40, dim), seed=1)
    magnitude = 0.1 * math.log(8.0) + 1 if options.get("kind") == "yarn" else 1.0

    def turned(x):
        angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies
        a, b = x.double().chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1) * magnitude

    out_q, out_k = layer(q, k)
    assert_close(out_q, turned(q), scale=3.0)
    assert_close(out_k, turned(k), scale=3.0)
    grad = random(q.shape, seed=2)
    double = wide(q)
    (expected,) = torch.autograd.grad(turned(double), double, grad.double())
    out_q.backward(grad)
    assert_close(q.grad, expected, scale=3.0)
    other = RotaryEmbedding(dim, theta=theta, scaling=scaling)
    other.load_state_dict(layer.state_dict())
    if theta != 10000.0 or scaling:
        with pytest.raises(ValueError, match="belongs to another base"):
            RotaryEmbedding(dim).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_keeps_dtypes(dtype):
    """0.0.12."""
    q, k = RotaryEmbedding(8)(random((1, 5, 8), dtype), random((1, 9, 8), dtype))
    assert q.dtype == k.dtype == dtype


def test_rotary_products_depend_on_distances_alone():
    """0.0.2."""
    layer, one, other = RotaryEmbedding(16), random((16,)), random((16,), seed=1)
    q, k = layer(one.expand(1, 12, 16), other.expand(1, 12, 16))
    scores = (q @ k.mT)[0]
    for shift in range(-5, 6):
        diagonal = scores.diagonal(shift)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)


def test_rotary_helpers():
    x = random((2, 3, 5, 8))
    angles = torch.arange(9.0)[:, None] * plain_frequencies(8, 10000.0).float()
    angles = torch.cat([angles, angles], -1)[None, None]
    assert torch.equal(rotate_half(x), torch.cat([-x[..., 4:], x[..., :4]], -1))
    assert torch.allclose(apply_rotary_pos_emb(x, angles.cos(), angles.sin()), RotaryEmbedding(8)(x, x)[0], atol=1e-5)


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"kind": "longrope"}, "scaling is 'longrope', expected 'linear', 'ntk', 'yarn' or 'llama3'"),
        ({"kind": "linear", "factor": 0.5}, "factor is 0.5.*at least 1"),
        ({"type": "linear"}, "scaling has 'type', expected keys out of kind"),
        ({"kind": "llama3", "factor": 8, "high_freq_factor": 0.5}, "high_freq_factor"),
    ],
    ids=["kind", "factor", "key", "high"],
)
def test_rotary_bad_scaling(scaling, message):
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(8, scaling=scaling)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (lambda: SinePositionalEmbedding(8), (2, 5, 8)),
        (lambda: LearnablePositionalEmbedding(5, 8, True), (2, 5, 8)),
        (lambda: SimplicialEmbedding(2), (2, 5, 8)),
        (lambda: build_patch_embedding(PatchEmbeddingConfig(8, 4, 3, 1, 1)), (2, 9, 8)),
    ],
    ids=["sine", "learnable", "simplicial", "patch"],
)
def test_compile_fullgraph(layer, shape):
    layer, x = layer(), random(shape, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), layer(x)
    assert torch.allclose(out, expected, atol=1e-6)
    for one, other in zip(*(torch.autograd.grad(y.sum(), x) for y in (out, expected)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
