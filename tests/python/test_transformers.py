"""The attention modules of models that change their scores, from `transformers`, tiny and with random weights: their
eager path against ours, outputs and the gradients of all parameters."""

import copy

import pytest
import torch
from attention_inputs import random
from devices import on_each_device  # noqa: F401
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularMask,
)

from xformers.ops import memory_efficient_attention

transformers = pytest.importorskip("transformers")
utils = pytest.importorskip("transformers.modeling_utils")

BATCH, LENGTH, HIDDEN, HEADS, DIM = 2, 37, 48, 4, 16
WINDOW = 9
FP64 = torch.float64


def grouped(query, key, value):
    """transformers' [batch, heads, length, dim] as [batch, length, groups, heads, dim], key heads `expand`ed."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    groups = k.shape[2]
    q = q.unflatten(2, (groups, -1))
    k, v = (x[:, :, :, None].expand(*x.shape[:3], q.shape[3], x.shape[3]) for x in (k, v))
    return q, k, v


def mask_of(module):
    return LocalAttentionFromBottomRightMask(WINDOW - 1, 0) if module.sliding_window else LowerTriangularMask()


def gemma2(module, query, key, value, attention_mask, scaling, softcap=None, **_):
    q, k, v = grouped(query, key, value)
    return memory_efficient_attention(q, k, v, mask_of(module), scale=scaling, softcap=softcap).flatten(2, 3), None


def gpt_oss(module, query, key, value, attention_mask, scaling, s_aux=None, **_):
    q, k, v = grouped(query, key, value)
    sinks = s_aux.view(q.shape[2], q.shape[3])
    return memory_efficient_attention(q, k, v, mask_of(module), scale=scaling, sinks=sinks).flatten(2, 3), None


def t5(module, query, key, value, attention_mask, scaling, position_bias=None, **_):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    bias = position_bias.expand(len(q), -1, -1, -1)
    return memory_efficient_attention(q, k, v, bias, scale=scaling), None


OURS = {"xformers_gemma2": gemma2, "xformers_gpt_oss": gpt_oss, "xformers_t5": t5}
for _name, _function in OURS.items():
    utils.ALL_ATTENTION_FUNCTIONS.register(_name, _function)


def causal(window=None):
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    hidden = j > i if window is None else (j > i) | (j <= i - window)
    return torch.zeros(1, 1, LENGTH, LENGTH, dtype=FP64).masked_fill(hidden, -torch.inf)


def initialized(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=FP64, device="cpu")
            parameter.copy_(values * 0.5)
    return module.double()


def outputs(run, module, x):
    """The output, and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    out = run(module, x)
    grads = torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])
    return [out, *grads]


def assert_same(got, want, fp32_softmax=False):
    """Up to roundings of sums of rows: those of fp64, or of a softmax that is fp32 whatever the dtype."""
    roundings = 1024 * torch.finfo(torch.float32 if fp32_softmax else FP64).eps
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= roundings * b.abs().max()


def decoder_config(cls, **options):
    return cls(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=DIM,
        num_hidden_layers=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size=50,
        intermediate_size=32,
        **options,
    )


def compare_decoder(cls, config, name, layer):
    positions = (torch.ones(BATCH, LENGTH, DIM, dtype=FP64), torch.zeros(BATCH, LENGTH, DIM, dtype=FP64))
    if name == "xformers_gpt_oss":  # which has half of them
        positions = tuple(x[..., : DIM // 2] for x in positions)
    x = random((BATCH, LENGTH, HIDDEN), FP64, 1)
    config._attn_implementation = "eager"
    module = initialized(cls(config, layer_idx=layer).eval())
    mask = causal(WINDOW if module.sliding_window else None)

    def run(module, x):
        return module(x, position_embeddings=positions, attention_mask=mask)[0]

    want = outputs(run, module, x)
    module.config = copy.deepcopy(config)
    module.config._attn_implementation = name
    assert_same(outputs(run, module, x), want, fp32_softmax=name == "xformers_gemma2")


@pytest.mark.parametrize("layer", [0, 1])
def test_gemma2(layer):
    """Softcap, grouped heads, a window in every other layer."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2Config

    config = decoder_config(Gemma2Config, attn_logit_softcapping=2.0, query_pre_attn_scalar=DIM)
    compare_decoder(Gemma2Attention, config, "xformers_gemma2", layer)


@pytest.mark.parametrize("layer", [0, 1])
def test_gpt_oss(layer):
    """Learned sinks, grouped heads, a window in every other layer."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig

    compare_decoder(GptOssAttention, decoder_config(GptOssConfig), "xformers_gpt_oss", layer)


def t5_module():
    from transformers.models.t5.modeling_t5 import T5Attention, T5Config

    config = T5Config(d_model=HIDDEN, d_kv=DIM, num_heads=HEADS, is_decoder=False)
    config._attn_implementation = "eager"
    return initialized(T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval())


def test_t5_encoder():
    """A learned bias, one of all batch elements."""
    module, x = t5_module(), random((BATCH, LENGTH, HIDDEN), FP64, 1)
    want = outputs(lambda module, x: module(x)[0], module, x)
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation = "xformers_t5"
    assert_same(outputs(lambda module, x: module(x)[0], module, x), want)


def test_t5_encoder_packed():
    """The same for sequences of different lengths without padding, against a loop of calls."""
    lengths = [37, 1, 20, 64]
    module, x = t5_module(), random((1, sum(lengths), HIDDEN), FP64, 1)

    def one_by_one(module, x):
        return torch.cat([module(part)[0] for part in x.split(lengths, 1)], 1)

    def packed(module, x):
        mask = BlockDiagonalMask.from_seqlens(lengths)
        bias = module.compute_bias(max(lengths), max(lengths), device=x.device, past_seen_tokens=0)
        q, k, v = (project(x).unflatten(2, (HEADS, DIM)) for project in (module.q, module.k, module.v))
        out = memory_efficient_attention(q, k, v, mask.with_bias(bias), scale=module.scaling)
        return module.o(out.flatten(2))

    assert_same(outputs(packed, module, x), outputs(one_by_one, module, x))


def test_mpt():
    """ALiBi. Theirs adds slope * (j - last), which differs by a constant of each row, and the softmax forgets that."""
    from transformers.models.mpt.modeling_mpt import MptAttention, MptConfig, build_mpt_alibi_tensor

    module = initialized(MptAttention(MptConfig(d_model=HEADS * DIM, n_heads=HEADS), layer_idx=0).eval())
    x = random((BATCH, LENGTH, HEADS * DIM), FP64, 1)
    alibi = build_mpt_alibi_tensor(HEADS, LENGTH)
    hidden = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def theirs(module, x):
        return module(x, alibi, attention_mask=hidden)[0]

    def ours(module, x):
        q, k, v = (y.unflatten(2, (HEADS, DIM)) for y in module.Wqkv(x).chunk(3, dim=2))
        slopes = alibi[:, 0, -1] - alibi[:, 0, -2]
        scale = module.softmax_scale
        out = memory_efficient_attention(q, k, v, LowerTriangularMask(), scale=scale, alibi_slopes=slopes)
        return module.out_proj(out.flatten(2))

    assert_same(outputs(ours, module, x), outputs(theirs, module, x), fp32_softmax=True)
