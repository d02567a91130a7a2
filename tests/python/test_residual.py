"""Residual paths: styles, norms, DeepNorm's numbers."""

import pytest
import torch
from blocks_reference import random
from xformers.components import NormalizationType, PostNorm, PreNorm, Residual, ResidualNormStyle
from xformers.components.residual import (
    LayerNormStyle,
    RequiresWrappedInputs,
    Skip,
    get_deepnorm_coefficients,
    get_normalization_layer,
)
from xformers.triton import FusedLayerNorm


class Sum(torch.nn.Module):
    """Of what it is given, which it keeps."""

    def forward(self, *inputs, factor=1.0):
        self.given = inputs
        return sum(inputs) * factor


class Counting(torch.nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * 2


def norm(x, eps=1e-6):
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def test_styles():
    """0.0.2: pre, post; any leading dims."""
    for shape in ((8,), (2, 8), (3, 2, 8), (2, 1, 3, 8)):
        x = random(shape)
        pre, post = Residual(PreNorm(8, Sum(), "layernorm")), PostNorm(8, Residual(Sum()), "layernorm")
        deep = PostNorm(8, Residual(Sum(), scale=1.5), NormalizationType.LayerNorm)
        assert torch.allclose(pre(inputs=[x]).double(), x.double() + norm(x), atol=1e-5)
        assert torch.allclose(post(inputs=[x]).double(), norm(2 * x), atol=1e-5)
        assert torch.allclose(deep(inputs=[x]).double(), norm(2.5 * x), atol=1e-5)


def test_two_inputs_are_both_normalised():
    """0.0.10."""
    layer, a, b = PreNorm(8, Sum(), "layernorm"), random((2, 8)), random((3, 2, 8), seed=1)
    layer(inputs=[a, b])
    for given, x in zip(layer.sublayer.given, (a, b), strict=True):
        assert torch.allclose(given.double(), norm(x), atol=1e-5)


def test_one_norm_and_the_right_residual_for_one_tensor():
    """0.0.6, 0.0.10: the same object is normalised once, and the residual is the first input's."""
    layer, x = Residual(PreNorm(8, Sum(), "layernorm")), random((2, 8))
    layer.layer.norm = Counting()
    out = layer(inputs=[x, x, x])
    assert layer.layer.norm.calls == 1 and torch.allclose(out, x + 6 * x)
    assert all(given is layer.layer.sublayer.given[0] for given in layer.layer.sublayer.given)
    layer(inputs=[x, x.clone(), x])
    assert layer.layer.norm.calls == 4


def test_norm_layers():
    """0.0.4 (listed twice): FusedLayerNorm by default; 0.0.12: the flag reaches the norm; eps (0.0.10)."""
    for cls in (PreNorm, PostNorm):
        fused, plain = cls(8, Sum(), "layernorm").norm, cls(8, Sum(), "layernorm", use_triton=False).norm
        assert type(fused) is FusedLayerNorm and fused.epsilon == 1e-6
        assert type(plain) is torch.nn.LayerNorm and plain.eps == 1e-5
        assert type(cls(8, Sum(), NormalizationType.Skip).norm) is Skip
    assert get_normalization_layer("layernorm") is torch.nn.LayerNorm
    assert get_normalization_layer(NormalizationType.Skip) is Skip
    with pytest.raises(ValueError, match="normalization is 'batch', expected one of 'layernorm', 'skip'"):
        get_normalization_layer("batch")
    assert LayerNormStyle is ResidualNormStyle and ResidualNormStyle("deepnorm") is ResidualNormStyle.DeepNorm


def test_keywords_and_wrapped_inputs():
    layer = PostNorm(8, PreNorm(8, Sum(), "skip"), "skip")
    x = random((2, 8))
    assert torch.equal(layer(inputs=[x, x], factor=3.0), 6 * x)
    assert layer.wrap_inputs and isinstance(layer, RequiresWrappedInputs) and not layer.sublayer.wrap_inputs


@pytest.mark.parametrize("encoder, decoder", [(6, 0), (0, 6), (12, 4), (0, 0)])
def test_deepnorm_coefficients(encoder, decoder):
    """0.0.10: the table of arXiv:2203.00555."""
    e, d = get_deepnorm_coefficients(encoder, decoder)
    if encoder and decoder:
        assert e == pytest.approx((0.81 * (12**4 * 4) ** (1 / 16), 0.87 * (12**4 * 4) ** (-1 / 16)))
        assert d == pytest.approx(((3 * 4) ** 0.25, (12 * 4) ** -0.25))
    elif encoder or decoder:
        alone = e or d
        assert (e is None) == (encoder == 0) and (d is None) == (decoder == 0)
        assert alone.alpha == pytest.approx(12**0.25) and alone.beta == pytest.approx(48**-0.25)
    else:
        assert e is None and d is None
    with pytest.raises(ValueError, match="number of layers is -1"):
        get_deepnorm_coefficients(-1, 2)


def test_gradients():
    layer = Residual(Sum(), scale=0.5)
    x = random((2, 8), torch.float64, 0, True)
    assert torch.autograd.gradcheck(lambda x: layer(inputs=[x]), x)
