"""MultiHeadDispatch and its projections: the formula, how many products and copies a call makes, users' attentions,
checkpoints, and what is refused."""

import copy
import json
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from devices import on_cpu, on_each_device  # noqa: F401
from xformers.components import (
    InputProjection,
    InputProjectionConfig,
    MultiHeadDispatch,
    MultiHeadDispatchConfig,
    build_multi_head_attention,
)
from xformers.components.attention import Attention, AttentionMask, ScaledDotProduct, register_attention
from xformers.components.attention._registry import ATTENTION_CLASS_NAMES, ATTENTION_REGISTRY
from xformers.components.attention.base import AttentionConfig
from xformers.components.attention.utils import bool_mask_to_additive, maybe_merge_masks, reshape_key_padding_mask

import xformers  # noqa: F401

BATCH, SEQLEN, DIM, HEADS = 2, 13, 24, 3


def build(name="scaled_dot_product", *, causal=False, dtype=torch.float64, **options):
    torch.manual_seed(1)
    config = {"name": name, "dropout": 0.0, "causal": causal, "seq_len": 16, "num_landmarks": 64}
    return build_multi_head_attention({"dim_model": DIM, "num_heads": HEADS, "attention": config, **options}).to(dtype)


def tokens(seqlen=SEQLEN, batch=BATCH, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, seqlen, DIM, generator=generator, dtype=torch.float64, device="cpu")
    return x.to(torch.get_default_device())


@on_cpu
def rotated(x):
    """[N, S, D], element i with i + D / 2."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@on_cpu
def formula(module, query, key, value, keep=None, rotary=False):
    w = {name: t.detach().double().cpu() for name, t in module.state_dict().items()}

    def project(x, name):
        return F.linear(x.cpu(), w[f"{name}.weight"], w.get(f"{name}.bias"))

    q, k, v = (project(x, f"in_proj_container.{n}_proj") for n, x in zip("qkv", (query, key, value), strict=True))
    outs = []
    for h in range(HEADS):
        part = [x.chunk(HEADS, -1)[h] for x in (q, k, v)]
        if rotary:
            part[:2] = [rotated(x) for x in part[:2]]
        scores = part[0] @ part[1].transpose(1, 2) / part[0].shape[-1] ** 0.5
        if keep is not None:
            scores = scores.masked_fill(~keep, -torch.inf)
        outs.append(scores.softmax(-1) @ part[2])
    return project(torch.cat(outs, -1), "proj")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": (False, False, False, False)},
        {"bias": (True, False, True, False)},
        {"use_separate_proj_weight": False},
        {"dim_key": 12},
        {"use_rotary_embeddings": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["self", "keys", "all"])
def test_against_the_formula(options, which):
    module = build(**options)
    query = tokens().requires_grad_()
    key = query if which == "self" else tokens(9, seed=4)
    value = key if which != "all" else tokens(9, seed=5)
    rotary = bool(options.get("use_rotary_embeddings"))
    out = module(query) if which == "self" else module(query, key, value)
    expected = formula(module, query, key, value, rotary=rotary)
    assert torch.allclose(out.cpu(), expected, atol=1e-12 if not rotary else 1e-6)
    if not rotary:
        (gradient,) = torch.autograd.grad(out.square().sum(), query)
        (exact,) = torch.autograd.grad(expected.square().sum(), query)
        assert torch.allclose(gradient, exact, atol=1e-10)


class Calls:
    """The names of the operators that run below autograd."""

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        self.names = [event.name.rpartition("::")[2] for event in self.profile.events()]

    def count(self, *names):
        return sum(self.names.count(name) for name in names)


PRODUCTS = ("mm", "addmm", "bmm")
COPIES = ("clone", "copy_", "cat", "stack", "constant_pad_nd")


def test_self_attention_is_one_product():
    """0.0.6: one product for queries, keys and values, forward and backward, and no copy on the way."""
    x = tokens().float().requires_grad_()
    module = build(dtype=torch.float32, bias=(False,) * 4)  # a bias is copied into the result before its product
    with Calls() as forward:
        out = module(x)
    assert forward.count(*PRODUCTS) == 2, forward.names  # projections, output
    assert forward.count(*COPIES) == 0, forward.names
    with Calls() as backward:
        out.sum().backward()
    assert backward.count(*PRODUCTS) == 4, backward.names  # two gradients each
    assert backward.count("cat", "stack", "zeros", "new_zeros", "select_backward", "slice_backward") == 0, (
        backward.names
    )
    with Calls() as apart:
        module(x, x.clone())
    assert apart.count(*PRODUCTS) == 4
    gradients = [getattr(module.in_proj_container, f"{n}_proj").weight.grad for n in "qkv"]
    assert all(g is not None and g.shape == (DIM, DIM) for g in gradients)


def are_packed(projection):
    weights = [projection.q_proj.weight, projection.k_proj.weight, projection.v_proj.weight]
    step = weights[0].numel() * weights[0].element_size()
    return [w.data_ptr() - weights[0].data_ptr() for w in weights] == [0, step, 2 * step]


@pytest.mark.parametrize("way", ["double", "deepcopy", "pickle", "load", "to_empty", "optimizer"])
def test_weights_stay_side_by_side(way):
    module = build(dtype=torch.float32)
    state = copy.deepcopy(module.state_dict())
    if way == "double":
        module = module.double().float()
    elif way == "deepcopy":
        module = copy.deepcopy(module)
    elif way == "pickle":
        module = pickle.loads(pickle.dumps(module))
    elif way == "load":
        module = build(dtype=torch.float32, use_rotary_embeddings=False)
        module.load_state_dict(state)
    elif way == "to_empty":
        module = module.to_empty(device=state["proj.weight"].device)
        module.load_state_dict(state)
    else:
        module(tokens().float()).sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.0).step()
    assert are_packed(module.in_proj_container)
    assert all(torch.equal(t, state[name]) for name, t in module.state_dict().items())


def test_weights_that_were_moved_apart():
    module, x = build(), tokens()
    expected = module(x)
    for letter in "qkv":
        projection = getattr(module.in_proj_container, f"{letter}_proj")
        projection.weight = torch.nn.Parameter(projection.weight.detach().clone())
    assert torch.allclose(module(x), expected)


@pytest.mark.parametrize("form", ["packed", "apart"])
def test_packed_weights_of_old_releases_load(form):
    """0.0.6 ... 0.0.11"""
    module = build(dtype=torch.float32)
    state = module.state_dict()
    old = {name: t for name, t in state.items() if not name.startswith("in_proj_container.")}
    weights, biases = ([state[f"in_proj_container.{n}_proj.{kind}"] for n in "qkv"] for kind in ("weight", "bias"))
    if form == "packed":
        old["in_proj_container.in_proj_weight"] = torch.cat(weights)
    else:
        old.update({f"in_proj_container.{n}_proj_weight": w for n, w in zip("qkv", weights, strict=True)})
    old["in_proj_container.in_proj_bias"] = torch.cat(biases)
    other = build(dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(old)
    assert all(torch.equal(t, state[name]) for name, t in other.state_dict().items())


def test_names_of_checkpoints():
    module = build("linformer", use_rotary_embeddings=True)
    projections = [f"in_proj_container.{n}_proj.{kind}" for n in "qkv" for kind in ("weight", "bias")]
    expected = ["attention.E.weight", "attention.F.weight", *projections, "rotary_embeddings.inv_freq"]
    assert sorted(module.state_dict()) == sorted([*expected, "proj.weight", "proj.bias"])


def test_a_module_that_several_projections_share():
    config = InputProjectionConfig(DIM, 8, True)
    projection = InputProjection(config).double()
    assert projection.k_proj is projection.q_proj is projection.v_proj
    x = tokens()
    q, k, v = projection(x)
    assert torch.equal(q, k) and torch.equal(k, v) and torch.equal(q, projection.q_proj(x))
    shared = InputProjection(config, config, config, use_separate_proj_weight=False)
    assert shared.k_proj.weight is shared.q_proj.weight and shared.k_proj.bias is not shared.q_proj.bias
    with pytest.raises(AssertionError, match=r"the value projection is \[6, 24\]"):
        InputProjection(config, config, InputProjectionConfig(DIM, 6, True), use_separate_proj_weight=False)


@pytest.fixture
def mine():
    """An attention of the user's that notes what it is given."""

    class Mine(Attention):
        def __init__(self, dropout=0.0, num_heads=None, dim_features=None, **options):
            super().__init__()
            self.options = options
            self.sizes = (num_heads, dim_features)

        def forward(self, q, k, v, att_mask=None, key_padding_mask=None):
            self.given = (q.shape, k.shape, att_mask, key_padding_mask)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if att_mask is not None:
                scores = scores.masked_fill(~att_mask, -torch.inf)
            return scores.softmax(-1) @ v

    register_attention("mine", AttentionConfig)(Mine)
    yield Mine
    del ATTENTION_REGISTRY["mine"]
    ATTENTION_CLASS_NAMES.discard("Mine")


def test_an_attention_of_the_user_s(mine):
    """It gets heads folded into the batch, or split where it asks for that, masks merged or separate."""
    module, x = build("mine"), tokens()
    out = module(x)
    assert module.attention.given[:3] == ((BATCH * HEADS, SEQLEN, DIM // HEADS),) * 2 + (None,)
    assert torch.allclose(out.cpu(), formula(module, x, x, x), atol=1e-12)
    module.attention.requires_head_dimension = True
    assert torch.allclose(module(x), out) and module.attention.given[0] == (BATCH, HEADS, SEQLEN, DIM // HEADS)
    module.attention.requires_head_dimension = False

    padding = torch.arange(SEQLEN) < torch.tensor([[9], [13]])
    keep = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril()
    out = module(x, att_mask=keep, key_padding_mask=padding)
    assert torch.allclose(out.cpu(), formula(module, x, x, x, (keep & padding[:, None]).cpu()), atol=1e-12)
    assert module.attention.given[2].shape == (BATCH * HEADS, SEQLEN, SEQLEN)
    ours = build()
    ours.load_state_dict(module.state_dict())
    assert torch.allclose(ours(x, att_mask=keep, key_padding_mask=padding), out, atol=1e-12)

    module.attention.requires_separate_masks = True
    module(x, att_mask=keep, key_padding_mask=padding)
    assert module.attention.given[2] is keep and module.attention.given[3] is padding


def test_a_subclass_of_ours_gets_the_contract():
    class Derived(ScaledDotProduct):
        def forward(self, q, k, v, *args, **kwargs):
            self.given = q.shape
            return super().forward(q, k, v, *args, **kwargs)

    module = MultiHeadDispatch(DIM, HEADS, Derived()).double()
    module(tokens())
    assert module.attention.given == (BATCH * HEADS, SEQLEN, DIM // HEADS)


def test_flags_are_read_at_every_call():
    module, x = build("fourier_mix"), tokens()
    assert module.in_proj_container is None
    module(x)
    module.attention.requires_input_projection = True
    with pytest.raises(AssertionError, match="requires projections, and there are none"):
        module(x)
    module.attention.requires_input_projection = False
    module.attention.requires_skip_multi_head = True
    assert torch.equal(module(x), module.attention(x))


@pytest.mark.parametrize("mask", ["bool", "float", "wrapped", "causal", "padding", "both"])
def test_masks(mask):
    module, x = build(), tokens()
    keep = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril()
    padding = torch.arange(SEQLEN) < torch.tensor([[9], [13]])
    masks = {
        "bool": {"att_mask": keep},
        "float": {"att_mask": bool_mask_to_additive(keep)},
        "wrapped": {"att_mask": AttentionMask.from_bool(keep)},
        "causal": {"att_mask": AttentionMask.make_causal(SEQLEN)},
        "padding": {"key_padding_mask": padding},
        "both": {"att_mask": bool_mask_to_additive(keep), "key_padding_mask": padding},
    }[mask]
    seen = keep if "att_mask" in masks else torch.ones_like(keep)
    seen = seen & padding[:, None] if "key_padding_mask" in masks else seen
    expected = formula(module, x, x, x, seen.cpu())
    assert torch.allclose(module(x, **masks).cpu(), expected, atol=1e-12)


def test_batches_of_one_are_expanded():
    module, query, key = build(), tokens(), tokens(7, batch=1, seed=4)
    assert torch.allclose(module(query, key), module(query, key.expand(BATCH, -1, -1)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda x: (x[0],), "query has shape"),
        (lambda x: (x, x[..., :5]), "key has 5 features, expected 24"),
        (lambda x: (x, x, x[:, :5]), "lengths 13 and 5"),
        (lambda x: (x.repeat(2, 1, 1), x), "key has batch 2, expected 4 or 1"),
    ],
    ids=["dimensions", "features", "values", "batch"],
)
def test_bad_queries_keys_and_values(arguments, message):
    """0.0.11: refused before any kernel."""
    module = build()
    with Calls() as calls, pytest.raises(AssertionError, match=message):
        module(*arguments(tokens()))
    assert calls.count("addmm", "attention_forward") == 0


def test_lengths_that_must_agree():
    for module, why in ((build("linformer"), "LinformerAttention requires"), (build(causal=True), "with causal=True")):
        with pytest.raises(AssertionError, match=why):
            module(tokens(), tokens(9))


@pytest.mark.parametrize("mask", ["att_mask", "key_padding_mask"])
def test_masks_that_are_not_taken(mask):
    with pytest.raises(AssertionError, match=f"{mask} is given, expected None beside LinformerAttention"):
        build("linformer")(tokens(), **{mask: torch.ones(BATCH, SEQLEN, dtype=torch.bool)})


def test_sizes_that_do_not_divide():
    with pytest.raises(AssertionError, match="dim_model is 24, expected a multiple of num_heads = 5"):
        build(num_heads=5)
    with pytest.raises(AssertionError, match="dim_value is 12, expected dim_model = 24"):
        build(dim_value=12)
    module = build(dim_value=12, out_proj=torch.nn.Linear(12, DIM))
    assert module(tokens()).shape == (BATCH, SEQLEN, DIM)


def test_one_bias_for_all(caplog):
    with caplog.at_level(logging.WARNING):
        module = build(bias=False)
    assert "one bias flag" in caplog.text and not any("bias" in name for name in module.state_dict())
    assert build().proj.bias.eq(0).all()


@pytest.mark.parametrize("name", ["pooling", "visual", "compositional"])
def test_those_that_handle_heads_themselves(name):
    """0.0.12: no projections that nobody uses."""
    module = build(name)
    assert all(key.startswith("attention.") for key in module.state_dict())
    assert name != "pooling" or not list(module.parameters())
    x = tokens(9)
    assert torch.equal(module(x), module.attention(x, x, x))


def test_builder_leaves_the_caller_s_dicts_alone():
    config = {"dim_model": DIM, "num_heads": HEADS, "attention": {"name": "nystrom", "num_landmarks": 4}}
    before = copy.deepcopy(config)
    first, second = (build_multi_head_attention(config) for _ in range(2))
    assert config == before and json.loads(json.dumps(config)) == before
    assert first.attention is not second.attention and first.attention.num_heads == HEADS


def test_builder_warns_about_unknown_options():
    config = {"dim_model": DIM, "num_heads": HEADS, "attention": {"name": "pooling"}, "residual_dropuot": 0.1}
    with pytest.warns(UserWarning, match="'residual_dropuot' is unknown .* did you mean 'residual_dropout'"):
        build_multi_head_attention(config)


@pytest.mark.parametrize("with_mask", [False, True])
def test_nan_in_padding_reaches_no_row(with_mask):
    padding = torch.arange(SEQLEN) < torch.tensor([[9], [13]])
    attention = ScaledDotProduct()
    q, k, v = (tokens(seed=seed).unflatten(-1, (HEADS, -1)) for seed in (1, 2, 3))
    masks = {"key_padding_mask": padding}
    if with_mask:
        masks["att_mask"] = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril()
    expected = attention(q, k, v, **masks)
    hidden = ~padding[..., None, None].to(k.device)
    q.requires_grad_()
    out = attention(q, k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan), **masks)
    assert torch.equal(out, expected)
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


def test_builder_takes_config_objects_and_attentions():
    attention = ScaledDotProduct(causal=True)
    config = MultiHeadDispatchConfig(DIM, HEADS, attention, residual_dropout=0.25)
    assert config["dim_model"] == DIM
    first, second = (build_multi_head_attention(config) for _ in range(2))
    assert config.attention is attention and len({first.attention, second.attention, attention}) == 3
    assert first.attention.causal and first.resid_drop.p == 0.25
    item = ATTENTION_REGISTRY["scaled_dot_product"]
    options = item.config("scaled_dot_product", None, True, None, None)
    built = build_multi_head_attention(MultiHeadDispatchConfig(DIM, HEADS, options))
    assert built.attention.causal and options.dropout is None
    assert MultiHeadDispatch.from_config(config).attention is attention


def test_mask_helpers():
    padding = torch.tensor([[True, False], [True, True]])
    reshaped = reshape_key_padding_mask(padding, 6)
    assert reshaped.shape == (6, 1, 2) and torch.equal(reshaped[3:], padding[1:, None].expand(3, 1, 2))
    assert maybe_merge_masks(None, None, 2, 2, 3) is None
    assert maybe_merge_masks(None, padding, 2, 2, 3, tgt_len=5).shape == (6, 5, 2)
    keep = torch.tensor([[True, False], [True, True]])
    merged = maybe_merge_masks(keep, padding, 2, 2, 3)
    assert merged.shape == (6, 2, 2) and torch.equal(merged[0], keep & padding[0])
    added = maybe_merge_masks(bool_mask_to_additive(keep), padding, 2, 2, 3)
    assert torch.equal(added != -torch.inf, merged)
    with pytest.raises(AssertionError):
        bool_mask_to_additive(padding.int())


def test_compile():
    torch._dynamo.reset()
    module, x = build(dtype=torch.float32), tokens().float().requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), module(x)
    assert torch.allclose(out, expected, atol=1e-5)
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    module, x = build(dtype=torch.float32), tokens().float().requires_grad_()
    expected = module(x)
    with torch.autocast(x.device.type, dtype):
        out = module(x)
    assert torch.allclose(out.float(), expected, atol=0.03)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_dropout():
    module, x = build(residual_dropout=0.5), tokens()
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
