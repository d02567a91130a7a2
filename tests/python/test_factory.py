"""Models from configs: blocks, stacks, masks, ties, positions, what is refused."""

import copy
import json
import pickle

import pytest
import torch
from xformers.components import NormalizationType, PostNorm, PreNorm, Residual
from xformers.components.attention import ATTENTION_REGISTRY
from xformers.components.feedforward import FEEDFORWARD_REGISTRY
from xformers.components.feedforward.mlp import MlpConfig
from xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from xformers.components.reversible import ReversibleSequence
from xformers.factory import (
    xFormer,
    xFormerConfig,
    xFormerDecoderBlock,
    xFormerDecoderConfig,
    xFormerEncoderBlock,
    xFormerEncoderConfig,
)
from xformers.factory.model_factory import components
from xformers.triton import FusedLayerNorm

DIM, SEQ, VOCAB = 32, 16, 64


def attention_config(**options):
    return {"num_heads": 4, "attention": {"name": "scaled_dot_product", "dropout": 0.0, "causal": False, **options}}


def encoder(**options):
    return {
        "block_type": "encoder",
        "dim_model": DIM,
        "num_layers": 2,
        "residual_norm_style": "pre",
        "position_encoding_config": {"name": "vocab", "seq_len": SEQ, "vocab_size": VOCAB, "dropout": 0.0},
        "multi_head_config": attention_config(),
        "feedforward_config": {"name": "MLP", "dropout": 0.0, "activation": "relu", "hidden_layer_multiplier": 2},
        **options,
    }


def decoder(**options):
    config = encoder()
    del config["multi_head_config"]
    return {
        **config,
        "block_type": "decoder",
        "multi_head_config_masked": attention_config(causal=True),
        "multi_head_config_cross": attention_config(),
        **options,
    }


def ids(batch=2, seqlen=SEQ):
    return torch.randint(0, VOCAB, (batch, seqlen), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("style", ["pre", "post", "deepnorm"])
@pytest.mark.parametrize("weight_init", ["timm", "vit", "moco", "small"])
def test_encoder_and_decoder(style, weight_init):
    stacks = [encoder(residual_norm_style=style), decoder(residual_norm_style=style)]
    given = copy.deepcopy(stacks)
    config = xFormerConfig(stacks, weight_init=weight_init)
    model = xFormer.from_config(config)
    assert stacks == given and json.dumps(stacks)  # the caller's dicts stay, and can be built again
    out = model(ids())
    assert out.shape == (2, SEQ, DIM) and bool(out.isfinite().all())
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    xFormer.from_config(config)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # 0.0.9
        assert torch.equal(other.eval()(ids()), model.eval()(ids()))


def test_list_dict_and_one_config():
    torch.manual_seed(0)
    one = xFormer(encoder())
    for stacks in ([encoder()], {"encoder_1": encoder()}, xFormerEncoderConfig(**encoder())):
        torch.manual_seed(0)
        model = xFormer(stacks)
        assert torch.equal(model(ids()), one(ids()))
    assert isinstance(xFormerConfig({"a": encoder()}).stack_configs["a"], xFormerEncoderConfig)
    assert isinstance(xFormerConfig([encoder(), decoder()]).stack_configs[1], xFormerDecoderConfig)
    assert xFormer([])(ids()) is None


def test_values_of_an_encoder_block():
    """The wiring, by hand, of each style."""
    for style in ("pre", "post", "deepnorm"):
        config = encoder(residual_norm_style=style, num_layers=1, position_encoding_config=None)
        block = xFormerEncoderBlock.from_config(xFormerEncoderConfig(**config)).double()
        x = torch.randn(2, SEQ, DIM, dtype=torch.float64)
        att, ff = block.wrap_att, block.wrap_ff
        if style == "pre":
            assert isinstance(att, Residual) and isinstance(att.layer, PreNorm)
            n = att.layer.norm(x)
            y = x + att.layer.sublayer(n, n, n)
            inner = ff.sublayer.layer  # behind the last layer there is one more norm
            expected = ff.norm(y + inner.sublayer(inner.norm(y)))
        else:
            alpha = (2 * 1) ** 0.25 if style == "deepnorm" else 1.0
            y = att.norm(alpha * x + att.sublayer.layer(x, x, x))
            expected = ff.norm(alpha * y + ff.sublayer.layer(y))
        assert torch.allclose(block(x), expected)


@pytest.mark.parametrize("layers", [(1,), (2,), (3, 2)])
def test_layer_positions(layers):
    """0.0.12: norms counted; positions, and the last norm, once a model."""
    model = xFormer([encoder(num_layers=n) for n in layers])
    norms = [m for m in model.modules() if isinstance(m, FusedLayerNorm)]
    assert len(norms) == 2 * sum(layers) + 1
    assert [e.pose_encoding is not None for e in model.encoders] == [True] + [False] * (sum(layers) - 1)
    assert [isinstance(e.wrap_ff, PostNorm) for e in model.encoders] == [False] * (sum(layers) - 1) + [True]
    both = xFormer([encoder(), decoder()])  # the last layer is that of the decoder; both begin with positions
    assert not any(isinstance(e.wrap_ff, PostNorm) for e in both.encoders)
    assert isinstance(both.decoders[1].wrap_ff, PostNorm) and both.decoders[0].pose_encoding is not None


def test_use_triton_false_gives_a_plain_layer_norm():
    """0.0.12; FusedLayerNorm is the default (0.0.4)."""
    fused, plain = xFormer(encoder()), xFormer(encoder(use_triton=False))
    assert any(isinstance(m, FusedLayerNorm) for m in fused.modules())
    assert not any(isinstance(m, FusedLayerNorm) for m in plain.modules())
    assert any(isinstance(m, torch.nn.LayerNorm) for m in plain.modules())
    skipped = xFormer(encoder(normalization=NormalizationType.Skip))
    assert not any("norm." in name for name in skipped.state_dict())


def test_weight_tying():
    """0.0.8: one module, whose gradient comes from both ends."""
    torch.manual_seed(0)
    tied = xFormer([encoder(), decoder()], tie_embedding_weights=True)
    assert tied.encoders[0].pose_encoding is tied.decoders[0].pose_encoding
    source, target = ids() % 8, ids() % 8 + 8
    (tied(source, target) * torch.randn(2, SEQ, DIM)).sum().backward()
    grad = tied.encoders[0].pose_encoding.word_embeddings.weight.grad.abs().sum(1)
    assert bool((grad[source.unique()] > 0).all()) and bool((grad[target.unique()] > 0).all())
    assert not bool(grad[16:].any())
    apart = xFormer([encoder(), decoder()])
    assert apart.encoders[0].pose_encoding is not apart.decoders[0].pose_encoding


def test_embedding_dim_other_than_model_dim():
    """0.0.10."""
    pose = {"name": "vocab", "dim_model": 12, "seq_len": SEQ, "vocab_size": VOCAB}
    model = xFormer([encoder(position_encoding_config=pose), decoder(position_encoding_config=pose)])
    assert model.encoders[0].embedding_projector.weight.shape == (DIM, 12)
    assert model(ids()).shape == (2, SEQ, DIM)
    assert xFormer(encoder()).encoders[0].embedding_projector is None


@pytest.mark.parametrize("kind", ["float", "bool", "inf", "row"])
def test_input_mask(kind):
    """It multiplies keys and values, not queries; False and -inf count as 0."""
    block = xFormerEncoderBlock.from_config(
        xFormerEncoderConfig(**encoder(num_layers=1, position_encoding_config=None))
    )
    x, keep = torch.randn(2, SEQ, DIM), torch.ones(2, SEQ)
    keep[:, 5:9] = 0
    mask = {"float": keep, "bool": keep.bool(), "inf": keep.masked_fill(keep == 0, float("-inf")), "row": keep[0]}[kind]
    out = block(x, input_mask=mask)
    n, m = block.wrap_att.layer.norm(x), block.wrap_att.layer.norm(x * keep.unsqueeze(-1))
    y = x + block.wrap_att.layer.sublayer(n, m, m)
    assert torch.allclose(out, block.wrap_ff(inputs=[y]), atol=1e-6) and bool(out.isfinite().all())
    assert not torch.allclose(out, block(x), atol=1e-3)
    model = xFormer([encoder(), decoder()])
    assert bool(model(ids(), encoder_input_mask=mask, decoder_input_mask=mask).isfinite().all())


def test_decoder_with_a_shorter_target_and_cross_attention():
    model = xFormer([encoder(), decoder()]).eval()
    source, target = ids(), ids(2, 5)
    out = model(source, target)
    assert out.shape == (2, 5, DIM)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    assert torch.allclose(model(source, changed)[:, :4], out[:, :4], atol=1e-6)  # causal among the targets
    assert not torch.allclose(model((source + 1) % VOCAB, target), out, atol=1e-3)  # sees the memory
    block = model.decoders[0]
    assert block.causal_attention and block.supports_attention_mask and not block.requires_squared_context_length
    assert not block.requires_same_k_q_dimensions
    block.requires_same_k_q_dimensions = True
    with pytest.raises(AssertionError, match="target has length 5, expected 16"):
        model(source, target)


def test_decoder_masks():
    config = decoder(num_layers=1, position_encoding_config=None, multi_head_config_masked=attention_config())
    block = xFormerDecoderBlock.from_config(xFormerDecoderConfig(**config))
    target, memory = torch.randn(1, 4, DIM), torch.randn(1, 6, DIM)
    among = torch.ones(4, 4, dtype=torch.bool).tril()
    to_memory = torch.ones(4, 6, dtype=torch.bool)
    to_memory[:, 5] = False
    out = block(target, memory, encoder_att_mask=to_memory, decoder_att_mask=among)
    memory[:, 5] = 100.0
    target[:, 3] = 3.0
    again = block(target, memory, encoder_att_mask=to_memory, decoder_att_mask=among)
    assert torch.allclose(out[:, :3], again[:, :3], atol=1e-5)


def test_simplicial_embeddings_on_the_last_layer():
    model = xFormer(encoder(simplicial_embeddings={"L": 4, "temperature": 0.5}))
    assert [e.simplicial_embedding is not None for e in model.encoders] == [False, True]
    assert torch.allclose(model(ids()).view(2, SEQ, 4, 8).sum(-1), torch.ones(2, SEQ, 4))


def test_patches():
    patches = {"in_channels": 3, "kernel_size": 4, "stride": 4}
    learnt = {"name": "learnable", "seq_len": 16, "add_class_token": False}
    for reversible in (False, True):
        model = xFormer(encoder(patch_embedding_config=patches, position_encoding_config=learnt, reversible=reversible))
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 16, DIM)


@pytest.mark.parametrize("style", ["pre", "post"])
def test_reversible(style):
    pose = {"name": "vocab", "dim_model": 12, "seq_len": SEQ, "vocab_size": VOCAB}
    config = encoder(
        residual_norm_style=style, reversible=True, position_encoding_config=pose, simplicial_embeddings={"L": 4}
    )
    model = xFormer(config)
    assert isinstance(model.encoders, ReversibleSequence)
    names = list(model.state_dict())
    assert any(n.startswith("encoders.blocks.1.g.net.sublayer.mlp.0") for n in names)
    assert any(n.startswith("rev_enc_pose_encoding.word_embeddings") for n in names)
    assert names.count("rev_enc_embedding_projector.weight") == 1
    out = model(ids())
    assert torch.allclose(out.view(2, SEQ, 4, 8).sum(-1), torch.ones(2, SEQ, 4))
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    x = model.rev_enc_embedding_projector(model.rev_enc_pose_encoding(ids()))
    halves = model.encoders(torch.cat([x, x], -1)).chunk(2, -1)
    assert torch.allclose(out, model.rev_enc_simplicial_embedding((halves[0] + halves[1]) / 2), atol=1e-6)
    for mask in (torch.zeros(2, SEQ), torch.ones(2, SEQ, dtype=torch.bool)):
        assert torch.allclose(model(ids(), encoder_input_mask=mask), out, atol=1e-6)
    hidden = torch.zeros(2, SEQ)
    hidden[:, 3] = float("-inf")
    assert bool(model(ids(), encoder_input_mask=hidden).isfinite().all())
    both = xFormer([config, decoder(residual_norm_style=style)])
    assert both(ids()).shape == (2, SEQ, DIM)


def test_dataclasses_as_parts():
    feedforward = MlpConfig("MLP", DIM, 0.0, "relu", 2, True)
    model = xFormer(xFormerEncoderConfig(**encoder(feedforward_config=feedforward)))
    assert model(ids()).shape == (2, SEQ, DIM)


def test_an_encoder_without_parameters_counts():
    config = encoder(
        num_layers=1,
        normalization="skip",
        position_encoding_config=None,
        multi_head_config={"num_heads": 1, "attention": {"name": "pooling", "dropout": 0.0}},
        feedforward_config={"name": "MLP", "dropout": 0.0, "activation": None, "hidden_layer_multiplier": 1},
    )
    model = xFormer(config)
    model.encoders[0].wrap_ff = PostNorm(DIM, Residual(torch.nn.Identity()), "skip")
    assert not list(model.parameters())
    assert model(torch.randn(1, 16, DIM)).shape == (1, 16, DIM)


def test_components_describe_themselves():
    table = components()
    assert set(table) == {"attention", "feedforward", "positional_embedding"}
    assert "hidden_layer_multiplier" in table["feedforward"]["MLP"]
    assert table["feedforward"]["MixtureOfExperts"]["capacity_factor"] == 1.0
    assert json.dumps(table)


@pytest.mark.parametrize(
    "stacks, error, message",
    [
        (
            lambda: [encoder(num_layer=2)],
            TypeError,
            r"stack_configs\[0\].num_layer is given.*did you mean 'num_layers'",
        ),
        (lambda: {"a": encoder(foo=2)}, TypeError, r"stack_configs\['a'\].foo is given"),
        (
            lambda: [{k: v for k, v in encoder().items() if k != "block_type"}],
            KeyError,
            r"stack_configs\[0\].block_type",
        ),
        (
            lambda: [encoder(block_type="middle")],
            ValueError,
            "block_type is 'middle', expected one of 'encoder', 'deco",
        ),
        (
            lambda: [encoder(), encoder(multi_head_config=None)],
            TypeError,
            r"stack_configs\[1\].multi_head_config is miss",
        ),
        (lambda: [encoder(residual_norm_style="mid")], ValueError, r"stack_configs\[0\].residual_norm_style is 'mid'"),
        (lambda: [encoder(feedforward_config=3)], TypeError, r"feedforward_config is 3, expected a dict"),
        (lambda: [encoder(reversible=True), encoder()], AssertionError, "reversible is that of 1 of 2 stacks"),
        (lambda: [encoder(residual_norm_style="deepnorm"), encoder()], AssertionError, "'deepnorm' is that of 1 of 2"),
        (lambda: [encoder(residual_norm_style="deepnorm", reversible=True)], AssertionError, "in reversible stacks"),
        (lambda: [encoder(), decoder(reversible=True)], AssertionError, "a decoder is reversible"),
        (
            lambda: [encoder(), encoder(multi_head_config=attention_config(name="scaled_dot"))],
            KeyError,
            r"stack_configs\[1\].multi_head_config.*scaled_dot",
        ),
        (
            lambda: [encoder(multi_head_config={**attention_config(), "num_heads": 5})],
            AssertionError,
            r"stack_configs\[0\].multi_head_config: MultiHeadDispatch: dim_model",
        ),
        (
            lambda: [encoder(feedforward_config={"name": "MLPP"})],
            KeyError,
            r"stack_configs\[0\].feedforward_config: .*did you mean 'MLP'",
        ),
    ],
    ids=[
        "option",
        "in a dict",
        "no type",
        "type",
        "missing",
        "style",
        "part",
        "reversible",
        "deepnorm",
        "both",
        "decoder",
        "attention",
        "heads",
        "feedforward",
    ],
)
def test_bad_configs(stacks, error, message):
    with pytest.raises(error, match=message):
        xFormer(stacks())


def test_bad_models():
    with pytest.raises(ValueError, match="decoders without an encoder"):
        xFormer([decoder()])(ids())
    with pytest.raises(ValueError, match="weight_init is 'xavier', expected one of 'timm'"):
        xFormer([encoder()], weight_init="xavier")
    with pytest.raises(TypeError, match="weight_inits is given.*did you mean 'weight_init'"):
        xFormerConfig([encoder()], weight_inits="vit")
    with pytest.raises(AssertionError, match="tie_embedding_weights is True with reversible"):
        xFormer([encoder(reversible=True), decoder()], tie_embedding_weights=True)


def test_earlier_names():
    config = encoder()
    config["layer_norm_style"] = config.pop("residual_norm_style")
    assert xFormer(config)(ids()).shape == (2, SEQ, DIM)


def test_compile_fullgraph():
    model = xFormer(encoder(num_layers=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(ids()), model(ids()), atol=1e-5)


def test_autocast():
    model = xFormer([encoder(), decoder()])
    expected = model(ids())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids())
    assert (out.float() - expected).abs().max().item() < 0.2
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_training_reversible_beside_plain():
    """Both learn to copy their input."""
    for reversible in (False, True):
        torch.manual_seed(0)
        model = xFormer(encoder(reversible=reversible))
        head = torch.nn.Linear(DIM, VOCAB)
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
        losses = []
        for _ in range(15):
            batch = torch.randint(0, VOCAB, (8, SEQ))
            loss = torch.nn.functional.cross_entropy(head(model(batch)).flatten(0, 1), batch.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.85 * losses[0]


def as_json(stacks, **options):
    return json.dumps({"stack_configs": stacks, **options})


MODELS = {
    "encoder": [encoder()],
    "post, one norm of PyTorch's": [encoder(residual_norm_style="post", use_triton=False, num_layers=1)],
    "deepnorm": [encoder(residual_norm_style="deepnorm"), decoder(residual_norm_style="deepnorm")],
    "decoder": {"a": encoder(), "b": decoder()},
    "reversible": [encoder(reversible=True)],
    "projected": [
        encoder(position_encoding_config={"name": "vocab", "dim_model": 12, "seq_len": SEQ, "vocab_size": VOCAB})
    ],
    "simplices": [encoder(simplicial_embeddings={"L": 4, "temperature": 0.5})],
    "fused": [
        encoder(
            feedforward_config={"name": "FusedMLP", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 2}
        )
    ],
    "convolutions": [encoder(feedforward_config={"name": "Conv2DFeedforward", "dropout": 0.0, "activation": "gelu"})],
    "experts": [
        encoder(
            feedforward_config={
                "name": "MixtureOfExperts",
                "dropout": 0.0,
                "activation": "gelu",
                "number_of_experts": 3,
                "gate": "round_robin",
            }
        )
    ],
}


@pytest.mark.parametrize("name", MODELS)
def test_cpp_builds_the_same_model_from_json(name):
    """The same numbers from one state dict, and the same weights from one seed."""
    torch.manual_seed(0)
    model = xFormer(MODELS[name], weight_init="small").eval()
    text, state = as_json(MODELS[name], weight_init="small"), model.state_dict()
    out = torch.ops.xformers.xformer_forward(text, list(state), list(state.values()), ids())
    assert torch.allclose(out, model(ids()), atol=1e-5)
    mask = torch.ones(2, SEQ)
    mask[:, 3:5] = 0
    given = {"encoder_input_mask": mask, "decoder_input_mask": mask} if name != "reversible" else {}
    out = torch.ops.xformers.xformer_forward(text, list(state), list(state.values()), ids(), **given)
    assert torch.allclose(out, model(ids(), **given), atol=1e-5)
    names, values = torch.ops.xformers.xformer_weights(text, 11)
    torch.manual_seed(11)
    model.init_weights("small")
    mine = {n: t for n, t in model.state_dict().items() if "moe.gate" not in n}
    assert sorted(names) == sorted(mine)
    assert all(torch.equal(mine[n], v) for n, v in zip(names, values, strict=True))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "the text is no JSON"),
        (as_json([encoder(num_layer=2)]), r"stack_configs\[0\].num_layer is given.*did you mean 'num_layers'"),
        (as_json([encoder(), encoder(multi_head_config=None)]), r"stack_configs\[1\].multi_head_config is missing"),
        (as_json([encoder(feedforward_config={"name": "MLPP"})]), r"feedforward_config: .*the nearest is 'MLP'"),
        (as_json([encoder(dim_model=30)]), r"stack_configs\[0\].multi_head_config: MultiHeadDispatch: dim_model is 30"),
        (as_json([encoder(reversible=True), encoder()]), "reversible is that of 1 of 2 stacks"),
        (as_json([encoder(block_type="middle")]), 'block_type is "middle"'),
        (as_json([encoder()], weight_init="xavier"), "weight_init is 'xavier'"),
    ],
    ids=["text", "option", "missing", "name", "heads", "mixed", "type", "scheme"],
)
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.xformers.xformer_weights(text, 0)


ONLY_PYTHON = {  # what takes Python objects, and what C++ has no need of
    "compositional": {"in_proj_container"},
    "favor": {"feature_map"},  # a name of upstream's, beside feature_map_type
    "nystrom": {"landmark_pooling", "v_skip_connection"},
    "scaled_dot_product": {"seq_len", "to_seq_len"},
    "Conv2DFeedforward": {"act_layer"},  # a name of upstream's, beside activation
    "MixtureOfExperts": {"expert_constructor", "group"},
    "sine": {"seq_len"},
}
ONLY_CPP = {"Conv2DFeedforward": {"bias"}}


def test_both_languages_name_the_same():
    """The same names with the same options, but for those above; users' classes aside."""
    cpp, python = json.loads(torch.ops.xformers.xformer_components()), components()
    registries = {
        "attention": ATTENTION_REGISTRY,
        "feedforward": FEEDFORWARD_REGISTRY,
        "positional_embedding": POSITION_EMBEDDING_REGISTRY,
    }
    assert set(cpp) == set(python) == set(registries)
    for kind, registry in registries.items():
        ours = {name for name, item in registry.items() if item.constructor.__module__.startswith("xformers.")}
        assert set(cpp[kind]) == ours <= set(python[kind]), kind
        for name in ours:
            here = set(python[kind][name]) - {"name"} - ONLY_PYTHON.get(name, set())
            assert set(cpp[kind][name]) - ONLY_CPP.get(name, set()) == here, (kind, name)
    named = {*cpp["attention"], *cpp["feedforward"], *cpp["positional_embedding"]}
    assert {*ONLY_PYTHON, *ONLY_CPP} <= named
