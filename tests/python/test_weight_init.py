"""How models begin: statistics of each scheme, DeepNorm's gains, whoever initialises itself, warnings, and waiting."""

import logging
import math

import pytest
import torch
from test_factory import decoder, encoder
from xformers.factory import weight_init as module
from xformers.factory import xFormer, xFormerWeightInit
from xformers.helpers.hierarchical_configs import BasicLayerConfig, get_hierarchical_configuration

DIM, HIDDEN = 128, 512


def wide(**options):
    feedforward = {"name": "MLP", "dropout": 0.0, "activation": "relu", "hidden_layer_multiplier": 4}
    return encoder(dim_model=DIM, feedforward_config=feedforward, **options)


def statistics(model):
    """std and largest element of each kind of weight of the first encoder layer."""
    state = {name: p for name, p in model.named_parameters() if name.startswith("encoders.0.")}
    kinds = {
        "q": "q_proj.weight",
        "k": "k_proj.weight",
        "v": "v_proj.weight",
        "out": "r.proj.weight",
        "ff": "mlp.0.weight",
    }
    return {k: next(p for n, p in state.items() if n.endswith(end)) for k, end in kinds.items()}


@pytest.mark.parametrize("deepnorm", [False, True])
@pytest.mark.parametrize("scheme", ["timm", "vit", "moco", "small"])
def test_statistics(scheme, deepnorm, caplog):
    """0.0.12; with DeepNorm (0.0.11) v_proj, proj and feed-forward are scaled by beta, q_proj and k_proj are not."""
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "xformers"):
        model = xFormer(wide(residual_norm_style="deepnorm" if deepnorm else "post"), weight_init=scheme)
    assert "weight_init" not in caplog.text
    beta = (8 * 2) ** -0.25 if deepnorm else 1.0
    for kind, weight in statistics(model).items():
        fan_out, fan_in = weight.shape
        gain = 1.0 if kind in "qk" else beta
        if scheme == "timm":
            # A normal variable cut at sqrt(3) of its std.
            a = math.sqrt(3)
            density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
            kept = math.sqrt(1 - 2 * a * density / math.erf(a / math.sqrt(2)))
            std, largest = 0.02 * gain * kept, 0.02 * gain * a
        else:
            small = scheme == "small" and kind != "ff"
            largest = gain * math.sqrt(6 / (fan_in + (4 if small else 1) * fan_out))
            std = largest / math.sqrt(3)
        assert abs(weight.std().item() / std - 1) < 0.03, kind
        assert 0.98 * largest < weight.abs().max().item() <= largest * 1.0001, kind
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias") and "norm" not in n}
    for name, bias in biases.items():
        drawn = scheme in ("vit", "small") and "wrap_ff" in name
        assert bool(bias.any()) == drawn and bias.abs().max().item() < 1e-5, name


def test_decoder_gains_use_both_stacks():
    model = xFormer(
        [wide(residual_norm_style="deepnorm"), {**decoder(residual_norm_style="deepnorm"), "dim_model": DIM}]
    )
    assert model.gains == pytest.approx([0.87 * (2**4 * 2) ** (-1 / 16), (12 * 2) ** -0.25])
    assert model.encoders[0].wrap_att.sublayer.scale == pytest.approx(0.81 * (2**4 * 2) ** (1 / 16))
    assert model.decoders[1].wrap_cross.sublayer.scale == pytest.approx((3 * 2) ** 0.25)


def test_convolutions():
    patches = {"in_channels": 3, "kernel_size": 8, "stride": 8}
    config = wide(patch_embedding_config=patches, position_encoding_config=None)
    weight = xFormer(config, weight_init="vit").encoders[0].patch_emb[1].weight
    std = math.sqrt(1 / (3 * 64))
    assert abs(weight.std().item() / std - 1) < 0.03 and weight.abs().max().item() <= 2 * std / 0.8796 * 1.001


def test_same_seed_same_weights():
    torch.manual_seed(1)
    model = xFormer([wide(), {**decoder(), "dim_model": DIM}])
    for scheme in xFormerWeightInit:
        states = []
        for _ in range(2):
            torch.manual_seed(7)
            model.init_weights(scheme)
            states.append({n: p.detach().clone() for n, p in model.named_parameters()})
        assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_modules_that_initialise_themselves_and_those_without_a_rule(monkeypatch, caplog):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = torch.nn.Linear(4, 4)  # which init_weights leaves
            self.filled = torch.nn.Linear(4, 4)

        def init_weights(self, gain=1.0, **_):
            torch.nn.init.constant_(self.filled.weight, gain)

    class Without(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    deferred = module.DeferredInit()
    with deferred:
        model = torch.nn.ModuleDict({"own": Own(), "linear": torch.nn.Linear(4, 4), "rest": Without()})
        apart = torch.nn.Linear(4, 4)
    with caplog.at_level(logging.WARNING, "xformers"):
        module.init_weights(model, "m", "vit", gain=2.0, deferred=deferred)
    deferred.finish()
    assert "m.rest (Without) is without a rule in 'vit'" in caplog.text
    assert bool((model["own"].filled.weight == 2.0).all())
    for layer in (model["own"].kept, apart, model["linear"]):
        assert 0 < layer.weight.abs().max().item() <= 2 * math.sqrt(6 / 8)
    assert apart.weight.abs().max().item() <= 0.5  # as nn.Linear begins
    monkeypatch.setattr(module, "_assert_if_not_initialized", True)
    with pytest.raises(AssertionError, match="without a rule"):
        module.init_weights(model, "m", "vit")


STAGES = [
    BasicLayerConfig(16, "pooling", 3, 2, 1, 256, "Conv2DFeedforward", repeat_layer=2),
    BasicLayerConfig(32, "scaled_dot_product", 3, 2, 1, 64, "MLP"),
    BasicLayerConfig(64, "pooling", 3, 2, 1, 16, "MLP"),
]


@pytest.mark.parametrize("style", ["pre", "post"])
def test_hierarchical_generation(style, capsys):
    """0.0.12: on [2, 3, 32, 32]."""
    configs = get_hierarchical_configuration(
        STAGES, residual_norm_style=style, use_rotary_embeddings=False, mlp_multiplier=2, dim_head=16
    )
    assert capsys.readouterr().out == "" and len(configs) == 4
    assert [c.get("patch_embedding_config", {}).get("in_channels") for c in configs] == [3, None, 16, 32]
    assert [c["multi_head_config"]["num_heads"] for c in configs] == [1, 1, 2, 4]
    model = xFormer(configs, weight_init="vit")
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 16, 64)
    out.sum().backward()
    with pytest.raises(AssertionError, match="embedding is 16, expected a multiple of dim_head = 24"):
        get_hierarchical_configuration(STAGES, dim_head=24)


def test_stringified_styles():
    (config,) = get_hierarchical_configuration(STAGES[1:2], residual_norm_style="ResidualNormStyle.Pre")
    assert config["residual_norm_style"] == "pre" and xFormer(config | {"position_encoding_config": None})
