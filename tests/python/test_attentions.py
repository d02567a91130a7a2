"""Every attention mechanism against its formula, and what all of them can do."""

import copy
import io
import itertools
import math
import pickle
import warnings

import mechanisms_reference as reference
import pytest
import torch
from devices import on_each_device  # noqa: F401
from xformers.components.attention import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionMask,
    build_attention,
)
from xformers.components.attention.feature_maps import NormDistribution
from xformers.components.attention.utils import iterative_pinv

import xformers  # noqa: F401

BATCH, HEADS, DIM = 2, 3, 8
LONGEST = 16
OPTIONS = {"num_heads": HEADS, "dim_model": HEADS * DIM, "seq_len": LONGEST, "dim_head": DIM, "num_landmarks": 5}
GLOBAL = torch.tensor([[n in (0, 5, 12)] for n in range(LONGEST)])
EVERY_TOKEN = torch.ones(LONGEST, dtype=torch.bool)
GRID = ("pooling", "visual")
WHOLE = (*GRID, "compositional")  # take [batch, seqlen, dim_model]
NAMES = ["compositional", "favor", "fourier_mix", "global", "lambda", "linformer", "local", "nystrom", "orthoformer"]
NAMES += ["pooling", "random", "scaled_dot_product", "visual"]
PATTERNS = ("global", "local", "random")  # see some of the keys
each = pytest.mark.parametrize("name", NAMES)


def build(name, dropout=0.0, dtype=torch.float32, **options):
    torch.manual_seed(1)
    given = {"global": {"attention_query_mask": GLOBAL}, "random": {"r": 0.4}}.get(name, {})
    module = build_attention({"name": name, "dropout": dropout, **OPTIONS, **given, **options})
    return module.to(torch.get_default_device(), dtype)


def inputs(name, seqlen=13, dtype=torch.float32, requires_grad=False):
    """A square number of tokens where the mechanism wants a grid."""
    if name in GRID:
        seqlen = max(1, math.isqrt(seqlen)) ** 2
    shape = (BATCH, seqlen, HEADS * DIM) if name in WHOLE else (BATCH * HEADS, seqlen, DIM)
    generator = torch.Generator("cpu").manual_seed(7)
    count = 1 if name in WHOLE else 3
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") for _ in range(count)]
    tensors = [t.to(torch.get_default_device(), dtype).requires_grad_(requires_grad) for t in tensors]
    return tensors * 3 if count == 1 else tensors


def formula(name, module, tensors, **options):
    w = {key: t.to(tensors[0].dtype).cpu() for key, t in module.state_dict().items()}
    q, k, v = (t.cpu() for t in tensors)
    if name == "scaled_dot_product":
        return reference.scaled_dot_product(q, k, v, **options)
    if name == "local":
        return reference.local(q, k, v, module.window_size, module.causal, **options)
    if name == "global":
        flags = torch.isin(torch.arange(LONGEST, device="cpu"), module.global_tokens.cpu())
        return reference.under_pattern(q, k, v, reference.global_pattern(flags, module.causal), **options)
    if name == "random":
        if module.r == 1:
            return reference.scaled_dot_product(q, k, v, **options)
        keep = module.rand_attention_mask.cpu()
        keep = keep & reference.triangle(*keep.shape) if module.causal else keep
        return reference.under_pattern(q, k, v, keep, **options)
    if name == "linformer":
        return reference.linformer(q, k, v, w["E.weight"], w["F.weight"])
    if name == "nystrom":
        return reference.nystrom(q, k, v, module.num_landmarks, **options)
    if name == "favor":
        omega = module.feature_map.features.to(q.dtype).cpu()
        return reference.favor(q, k, v, omega, module.feature_map.paired, module.causal)
    if name == "fourier_mix":
        return reference.fourier_mix(q)
    if name == "lambda":
        return reference.lambda_layer(q, k, v, w["rel_pos_emb"], module.paper_position)
    if name == "pooling":
        return reference.pooling(q, module.pool_size)
    if name == "visual":
        return reference.visual(q, w)
    if name == "compositional":
        kinds = {key: getattr(module, key) for key in ("qk_rule", "nonlinear", "q_compose", "scale")}
        return reference.compositional(q, w, HEADS, module.num_rules, **kinds, **options)
    assert name == "orthoformer"
    if q.shape[1] <= module.num_landmarks:
        return reference.softmax_attention(q, k, v)
    first = FIRST[q.shape[1]]
    landmarks = reference.orthogonal_landmarks(q.detach().double(), module.num_landmarks, first).to(q.dtype)
    return reference.orthoformer(q, k, v, landmarks)


FIRST = {}  # the landmark that Orthoformer begins with, by seqlen, for every one of batch * heads


def call(name, module, tensors, *args, **options):
    torch.manual_seed(3)
    if name == "orthoformer":
        seqlen = tensors[0].shape[1]
        draws = torch.rand(BATCH * HEADS, 1, dtype=torch.float64) * seqlen
        FIRST[seqlen] = draws.long().flatten().tolist()
        torch.manual_seed(3)
    return module(*tensors, *args, **options)


def with_gradients(function, tensors):
    leaves = list(dict.fromkeys(tensors))
    out = function()
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(out.device, out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, leaves, weights, allow_unused=True)]


def error(results, exact):
    """Of every result: the largest difference, over its largest element (gradients that are 0: of all results)."""
    pairs = [(a.double().cpu(), b.cpu()) for a, b in zip(results, exact, strict=True) if b is not None]
    least = max(0.1 * float(max(b.detach().abs().max() for _, b in pairs)), 1e-30)
    return [float((a - b).abs().max() / b.abs().max().clamp_min(least)) for a, b in pairs]


VARIANTS = [
    *[(name, {}) for name in NAMES],
    ("nystrom", {"causal": True}),
    ("nystrom", {"use_razavi_pinverse": False}),
    ("nystrom", {"pinverse_original_init": True, "inv_iterations": 4}),
    ("favor", {"causal": True}),
    ("favor", {"feature_map_type": "sm_hyp", "causal": True}),
    ("favor", {"feature_map_type": "sm_orf"}),
    ("lambda", {"paper_position": True}),
    ("pooling", {"pool_size": 5}),
    ("scaled_dot_product", {"causal": True}),
    ("local", {"window_size": 3}),
    ("local", {"window_size": 4, "causal": True}),
    ("global", {"causal": True}),
    ("global", {"attention_query_mask": EVERY_TOKEN}),
    ("random", {"causal": True, "r": 0.8}),
    ("random", {"r": 1.0}),
    ("compositional", {"qk_rule": True}),
    ("compositional", {"nonlinear": True, "num_rules": 4, "dim_selection": 6}),
    ("compositional", {"qk_rule": True, "q_compose": True, "dim_key": 48, "bias": False}),
    ("compositional", {"q_compose": True, "dim_attn": 48, "num_rules": 2, "use_separate_proj_weight": True}),
    ("compositional", {"causal": True}),
]


def name_of(value):
    if not isinstance(value, dict):
        return value
    return "-".join(f"{key}={'tensor' if isinstance(x, torch.Tensor) else x}" for key, x in value.items())


@pytest.mark.parametrize("name, options", VARIANTS, ids=name_of)
@pytest.mark.parametrize("seqlen", [13, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_against_the_formula(name, options, seqlen, dtype):
    """Output and gradients; fp32 within 1e-5 of fp64, half precision within twice the formula's own error."""
    module = build(name, dtype=dtype, **options)
    kinds = {}
    if options.get("causal"):
        kinds = {"keep": reference.triangle(seqlen, seqlen)} if name == "compositional" else {"causal": True}
        kinds = {} if name in ("favor", *PATTERNS) else kinds
    if name == "nystrom":
        kinds["over_the_batch"] = module.pinverse_original_init
        kinds["razavi_steps"] = module.inv_iterations if module.use_razavi_pinverse else None

    tensors = inputs(name, seqlen, dtype, requires_grad=True)
    got = with_gradients(lambda: call(name, module, tensors), tensors)
    assert got[0].shape == tensors[0].shape and got[0].dtype == dtype
    exact_inputs = [t.detach().double().cpu().requires_grad_() for t in dict.fromkeys(tensors)]
    exact_inputs = exact_inputs * 3 if name in WHOLE else exact_inputs
    exact = with_gradients(lambda: formula(name, module, exact_inputs, **kinds), exact_inputs)
    errors = error(got, exact)
    if dtype in (torch.float32, torch.float64):
        # The inverse of a badly conditioned matrix loses digits whatever computes it.
        limit = 1e-5 if dtype == torch.float32 else 1e-12
        assert max(errors) <= limit * (20 if name == "nystrom" else 1), errors
        return
    unit = torch.finfo(dtype).eps / 2
    if name == "favor":  # computed in fp32: inputs and results alone are rounded
        assert max(errors) <= 2 * unit, errors
        return
    if name == "nystrom" or (name == "orthoformer" and seqlen > 5):
        # Landmarks and inverses differ: no formula to compare with.
        assert max(errors) <= (0.15 if dtype == torch.bfloat16 else 0.03), errors
        return
    plain_inputs = [t.detach().cpu().requires_grad_() for t in dict.fromkeys(tensors)]
    plain_inputs = plain_inputs * 3 if name in WHOLE else plain_inputs
    plain = error(with_gradients(lambda: formula(name, module, plain_inputs, **kinds), plain_inputs), exact)
    # Two units more for results that the formula happens to round well.
    assert all(e <= 2 * p + 2 * unit for e, p in zip(errors, plain, strict=True)), (errors, plain)


def test_every_mechanism_is_tested():
    assert {
        name for name in ATTENTION_REGISTRY if ATTENTION_REGISTRY[name].constructor.__module__[:9] == "xformers."
    } == {*NAMES, "blocksparse"}  # test_blocksparse.py


@each
@pytest.mark.parametrize("options", [{}, {"paper_position": True, "qk_rule": True, "causal": True}], ids=name_of)
def test_gradcheck(name, options):
    """Of the inputs and of every parameter."""
    if name == "orthoformer":
        options = {**options, "num_landmarks": 9}  # fewer would be some of the queries, and have no gradient
    module = build(name, dtype=torch.float64, **options)
    tensors = inputs(name, 9, torch.float64, requires_grad=True)
    tensors = [t.detach()[: BATCH if name in WHOLE else 2, :, :DIM].contiguous().requires_grad_() for t in tensors]
    if name in WHOLE:
        module = build(name, dtype=torch.float64, dim_model=DIM, num_heads=2, dim_head=4, **options)
    count = 1 if name in WHOLE or name == "fourier_mix" else 3
    parameters = list(module.parameters())

    def function(*given):
        return call(name, module, (given * 3)[:3])

    assert torch.autograd.gradcheck(function, tensors[:count])
    if parameters:
        out = function(*tensors[:count])
        gradients = torch.autograd.grad(out.square().sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            direction = torch.randn_like(parameter)
            step = 1e-6
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(direction, alpha=sign * step)
                    values.append(function(*tensors[:count]).square().sum())
                    parameter.sub_(direction, alpha=sign * step)
            expected = (values[0] - values[1]) / (2 * step)
            assert torch.allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(name, dtype):
    """FourierMix with AMP (0.0.11), and all others; any sequence length."""
    module, tensors = build(name), inputs(name, 13, requires_grad=True)
    expected = call(name, module, tensors)
    with torch.autocast(tensors[0].device.type, dtype):
        out = call(name, module, tensors)
    assert out.isfinite().all()
    assert torch.allclose(out.float(), expected, atol=0.05 * float(expected.abs().max()))
    out.float().square().sum().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in tensors)
    if name == "fourier_mix":
        half = call(name, module, [t.detach().to(dtype) for t in tensors])
        assert half.dtype == dtype and torch.allclose(half.float(), expected, atol=0.05 * float(expected.abs().max()))


@each
def test_compile(name):
    """One graph, forward and backward, with the numbers of the eager call."""
    torch._dynamo.reset()
    module, tensors = build(name, causal=True), inputs(name, requires_grad=True)
    expected = with_gradients(lambda: call(name, module, tensors), tensors)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got = with_gradients(lambda: call(name, compiled, tensors), tensors)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5))


@each
def test_trace(name):
    """Scriptability (0.0.11): traced and eager calls give the same numbers with the same seed, dropout included."""
    module, tensors = build(name, dropout=0.3), inputs(name)
    module.train()
    module(*tensors)  # what is drawn once is drawn now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants of the trace
        traced = torch.jit.trace(module, tensors, check_trace=False)
    assert torch.equal(call(name, traced, tensors), call(name, module, tensors))


@each
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "used"])
def test_copies(name, called):
    module, tensors = build(name), inputs(name)
    expected = call(name, module, tensors)
    if not called:
        module = build(name)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for copied in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert type(copied) is type(module) and torch.equal(call(name, copied, tensors), expected)


@each
def test_dropout_reaches(name):
    """0.0.7: two calls in training differ, in evaluation they are equal."""
    module, tensors = build(name, dropout=0.3), inputs(name)
    torch.manual_seed(0)
    assert not torch.equal(module(*tensors), module(*tensors))
    module.eval()
    torch.manual_seed(0)
    first = module(*tensors)
    torch.manual_seed(0)
    assert torch.equal(first, module(*tensors))


@each
@pytest.mark.parametrize("options", [{}, {"causal": True, "paper_position": True}], ids=name_of)
def test_no_matrix_of_scores(name, options, device):
    """Nothing of seqlen x seqlen elements is ever allocated, forward or backward."""
    if name == "random":
        pytest.skip("its pattern is one")
    seqlen = 48 * 48
    if name == "global":
        options = {**options, "attention_query_mask": torch.arange(seqlen) % 100 == 0}
    module = build(name, num_heads=1, dim_model=4, dim_head=4, seq_len=seqlen, k=16, **options)
    shape = (1, seqlen, 4)
    tensors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    if device == "cuda":
        module(*tensors).sum().backward()  # cuBLAS takes its workspace
    with torch.profiler.profile(profile_memory=True) as profile:
        module(*tensors).sum().backward()
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len(sizes) > 4 and max(sizes) < seqlen * seqlen * 4 / 4


@each
def test_exceptions_of_shapes(name):
    """A sequence that is no grid, too long, or not of the built width is refused before work begins."""
    module, tensors = build(name), inputs(name, 13)
    if name in GRID:
        with pytest.raises(ValueError, match="expected a square, since they are those of a square grid"):
            module(tensors[0][:, :3])
    elif name in ("linformer", "lambda"):
        longer = [t.repeat(1, 2, 1) for t in tensors]
        with pytest.raises(AssertionError, match="has length 26, expected at most seq_len = 16"):
            module(*longer)
    elif name != "compositional" and name != "fourier_mix":
        with pytest.raises(ValueError, match=r"k(\.batch)? is 3, expected 6"):
            module(tensors[0], tensors[1][:3], tensors[2])
        with pytest.raises(ValueError, match="v.seqlen is 12, expected 13"):
            module(tensors[0], tensors[1], tensors[2][:, :12])


@pytest.mark.parametrize("name", ["scaled_dot_product", "nystrom", "compositional", "favor", *PATTERNS])
def test_causality_flag(name):
    """0.0.4, and Nystrom (0.0.3) where it is exact: future tokens change nothing."""
    module, tensors = build(name, causal=True, num_landmarks=64), inputs(name)
    out = call(name, module, tensors)
    changed = [torch.cat([t[:, :8], torch.randn_like(t[:, 8:])], 1) for t in tensors]
    changed = [changed[0]] * 3 if name in WHOLE else changed
    other = call(name, module, changed)
    assert torch.equal(out[:, :8], other[:, :8]) and not torch.equal(out[:, 8:], other[:, 8:])


def masks():
    keep = torch.rand(13, 13) > 0.4
    keep.fill_diagonal_(True)
    return keep, torch.zeros(13, 13).masked_fill(~keep, -torch.inf), AttentionMask.from_bool(keep)


@pytest.mark.parametrize("name", ["scaled_dot_product", "compositional", "local", "random"])
def test_masks_of_every_kind_are_alike(name):
    """0.0.4: bool, float and wrapped; 0.0.6: the wrapper."""
    module, tensors = build(name), inputs(name)
    keep, added, wrapped = masks()
    kinds = {"keep": keep.cpu()}
    module(*tensors)  # what is drawn once is drawn now
    expected = formula(name, module, [t.double() for t in tensors], **kinds)
    for mask in (keep, added, wrapped, keep[None], added.expand(tensors[0].shape[0], -1, -1)):
        out = call(name, module, tensors, att_mask=mask)
        assert torch.allclose(out.double().cpu(), expected, atol=1e-5)
    causal = AttentionMask.make_causal(20, device=added.device)
    out = call(name, module, tensors, att_mask=causal)
    assert causal._values is None  # j <= i needs no matrix
    if name not in PATTERNS:
        assert torch.equal(out, call(name, build(name, causal=True), tensors))
    assert torch.equal(call(name, module, tensors, att_mask=causal.values[:, :13, :13]), out) or torch.allclose(
        call(name, module, tensors, att_mask=causal.values[:, :13, :13]), out, atol=1e-6
    )


@pytest.mark.parametrize("name", ["scaled_dot_product", "compositional"])
def test_masks_of_the_caller_stay_as_they_are(name):
    module, tensors = build(name, causal=True), inputs(name)
    added = torch.randn(13, 13)
    before, q = added.clone(), tensors[0].clone()
    module(*tensors, att_mask=added)
    assert torch.equal(added, before) and torch.equal(tensors[0], q)


def test_one_mask_per_batch_element():
    """A [batch, S, S] mask belongs to all heads of its element."""
    module, tensors = build("scaled_dot_product"), inputs("scaled_dot_product")
    keep = torch.rand(BATCH, 13, 13) > 0.4
    out = module(*tensors, att_mask=keep)
    expected = reference.softmax_attention(*(t.double().cpu() for t in tensors), keep.cpu().repeat_interleave(HEADS, 0))
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 13), (13, 12), (4, 13, 13), (13,), (1, 2, 3, 13, 13)], ids=str)
def test_masks_of_another_shape(shape):
    module, tensors = build("scaled_dot_product"), inputs("scaled_dot_product")
    with pytest.raises(ValueError, match="att_mask is .* expected .*  Fix: "):
        module(*tensors, att_mask=torch.ones(shape, dtype=torch.bool))


def test_rows_that_see_nothing_are_zero():
    module, tensors = build("scaled_dot_product"), inputs("scaled_dot_product")
    keep = torch.ones(13, 13, dtype=torch.bool)
    keep[4] = False
    out = module(*tensors, att_mask=keep)
    assert out[:, 4].eq(0).all() and out[:, :4].ne(0).all()


def test_local_windows():
    """0.0.8: causal windows reach window_size keys back, others half of it to both sides."""
    eye = torch.eye(13)[None].expand(BATCH * HEADS, -1, -1).contiguous()
    for causal, size in itertools.product([False, True], [1, 3, 4, 50]):
        if not causal and size % 2 == 0:
            with pytest.raises(AssertionError, match=f"window_size is {size}, expected an odd number"):
                build("local", window_size=size)
            continue
        q, k, _ = inputs("local")
        seen = build("local", window_size=size, causal=causal)(q, k, eye) != 0  # the weights themselves
        places = torch.arange(13)
        back = places[:, None] - places
        expected = (back >= 0) & (back <= size) if causal else back.abs() <= size // 2
        assert torch.equal(seen, expected.expand_as(seen))
    with pytest.raises(AssertionError, match="window_size is 0, expected at least 1"):
        build("local", window_size=0, causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_global_rows_are_those_of_dense_attention(causal):
    module, tensors = build("global", causal=causal), inputs("global", LONGEST)
    dense = build("scaled_dot_product", causal=causal)(*tensors)
    rows = GLOBAL.flatten().to(dense.device)
    out = module(*tensors)
    assert torch.allclose(out[:, rows], dense[:, rows], atol=1e-6)
    assert not torch.allclose(out[:, ~rows], dense[:, ~rows], atol=1e-2)
    keep = reference.global_pattern(GLOBAL.flatten(), causal).to(dense.device)
    mask = torch.rand(LONGEST, LONGEST) > 0.3
    expected = build("scaled_dot_product")(*tensors, att_mask=keep & mask)
    assert torch.allclose(module(*tensors, att_mask=mask), expected, atol=1e-6)  # never lost


def test_global_flags():
    for flags in (torch.ones(16), torch.ones(1, 1, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)):
        with pytest.raises(AssertionError, match="attention_query_mask is .*expected .*Fix: "):
            build("global", attention_query_mask=flags)
    nobody = build("global", attention_query_mask=torch.zeros(16, dtype=torch.bool))
    assert nobody(*inputs("global")).eq(0).all()
    with pytest.raises(ValueError, match="seqlen is .*17.*, expected at most 16"):
        build("global")(*inputs("global", 17))
    assert not build("global").state_dict()


def test_random_patterns():
    """Held, or drawn in each call; longer inputs draw anew, shorter ones take a part."""
    module = build("random")
    longer, tensors, shorter = (inputs("random", n) for n in (15, 13, 9))
    module(*tensors)
    first = module.rand_attention_mask
    module(*shorter)
    assert module.rand_attention_mask is first and first.shape == (13, 13) and not module.state_dict()
    module(*longer)
    assert module.rand_attention_mask.shape == (15, 15)
    again = build("random", constant_masking=False)
    again(*tensors)
    first = again.rand_attention_mask
    again(*tensors)
    assert not torch.equal(again.rand_attention_mask, first)
    masked = torch.rand(9, 9) > 0.5  # beside the held pattern, in a shorter call
    out = module(*shorter, att_mask=masked)
    keep = module.rand_attention_mask.cpu().clone()
    keep[:9, :9] &= masked.cpu()
    expected = reference.under_pattern(*(t.double().cpu() for t in shorter), keep)
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)
    for r in (0.0, 1.5):
        with pytest.raises(AssertionError, match=f"r is {r}, expected a number above 0, at most 1"):
            build("random", r=r)
    assert torch.equal(build("random", r=1.0)(*tensors), build("scaled_dot_product")(*tensors))


@pytest.mark.parametrize("name", ["local", "random"])
def test_padding_beside_a_pattern(name):
    """Padded keys reach no row, in a call shorter than a held pattern too."""
    module = build(name)
    module(*inputs(name, 15))
    q, k, v = inputs(name)
    padding = torch.arange(13) < torch.tensor([[9], [13]])
    rows = padding.repeat_interleave(HEADS, 0)
    expected = formula(name, module, [t.double() for t in (q, k, v)], keep=rows[:, None].cpu())
    k, v = (t.masked_fill(~rows[..., None], torch.nan) for t in (k, v))
    out = module(q, k, v, key_padding_mask=padding)
    assert torch.allclose(out.double().cpu(), expected, atol=1e-5)


PADDING = torch.arange(13) < torch.tensor([[9], [13]])


@pytest.mark.parametrize("landmarks", [5, 64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["batch", "folded", "added"])
def test_nystrom_padding(landmarks, causal, kind):
    """Means leave padded tokens out; whatever lies there, NaN too, reaches no other row."""
    module = build("nystrom", num_landmarks=landmarks, causal=causal)
    q, k, v = inputs("nystrom")
    padding = PADDING.to(q.device)
    rows = padding.repeat_interleave(HEADS, 0)
    expected = formula("nystrom", module, [t.double() for t in (q, k, v)], padding=rows.cpu(), causal=causal)
    mask = padding if kind == "batch" else rows[:, None]
    if kind == "added":
        mask = torch.zeros(mask.shape, device=q.device).masked_fill(~mask, -torch.inf)
    for fill in (None, torch.nan):
        if fill is not None:
            q, k, v = (t.masked_fill(~rows[..., None], fill) for t in (q, k, v))
        q.requires_grad_()
        out = module(q, k, v, key_padding_mask=mask)
        assert torch.allclose(out.double().cpu()[rows.cpu()], expected[rows.cpu()], atol=1e-4)
        (gradient,) = torch.autograd.grad(out[rows].sum(), q)
        assert gradient[rows].isfinite().all()
        q = q.detach()


def test_nystrom_padding_of_another_shape():
    module, tensors = build("nystrom"), inputs("nystrom")
    for shape in [(BATCH, 12), (4, 13), (BATCH, 1, 13), (13,)]:
        with pytest.raises(AssertionError, match="key_padding_mask has shape"):
            module(*tensors, key_padding_mask=torch.ones(shape, dtype=torch.bool))


def test_nystrom_modules():
    """Landmarks of the user's, and what is added to the result."""

    class Pool(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 5).transpose(1, 2)

    tensors = inputs("nystrom", 15)
    pooled = build("nystrom", landmark_pooling=Pool())(*tensors)
    assert torch.allclose(pooled, build("nystrom")(*tensors), atol=1e-5)

    module = build("nystrom", conv_kernel_size=3)
    assert list(module.state_dict()) == ["skip_connection.weight"]
    v = tensors[2].view(BATCH, HEADS, 15, DIM)
    skipped = torch.nn.functional.conv2d(v, module.skip_connection.weight, padding=(1, 0), groups=HEADS)
    expected = build("nystrom")(*tensors) + skipped.view(-1, 15, DIM)
    assert torch.allclose(module(*tensors), expected, atol=1e-5)
    given = build("nystrom", v_skip_connection=copy.deepcopy(module.skip_connection))
    assert torch.allclose(given(*tensors), expected, atol=1e-5)
    with pytest.raises(ValueError, match="conv_kernel_size is 4, expected an odd number"):
        build("nystrom", conv_kernel_size=4)(*tensors)


def test_iterative_pinv():
    a = torch.rand(3, 6, 6, dtype=torch.float64).softmax(-1) + torch.eye(6)
    assert torch.allclose(iterative_pinv(a, 12), a.inverse(), atol=1e-8)
    assert torch.allclose(iterative_pinv(a, 6), reference.razavi(a.cpu(), 6).to(a.device))
    assert torch.allclose(iterative_pinv(a, 6, True), reference.razavi(a.cpu(), 6, True).to(a.device))
    with pytest.raises(ValueError, match="expected square matrices"):
        iterative_pinv(a[..., :5])


@pytest.mark.parametrize("how", ["orthogonal", "kmeans", "kmeans_spherical", "random"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_orthoformer_landmarks(how, fraction):
    """As many landmarks as tokens that differ from each other: each token is one, and attention nearly exact."""
    module = build("orthoformer", landmark_selection=how, subsample_fraction=fraction, num_landmarks=5)
    q, k, v = inputs("orthoformer")
    out = module(q, k, v)
    assert out.isfinite().all() and out.shape == v.shape
    lowest, highest = v.amin(1, keepdim=True), v.amax(1, keepdim=True)
    assert ((out >= lowest - 1e-5) & (out <= highest + 1e-5)).all()  # means of values
    torch.manual_seed(5)
    first = module(q, k, v)
    torch.manual_seed(5)
    assert torch.equal(first, module(q, k, v)) and not torch.equal(first, module(q, k, v))


def test_orthoformer_masks_are_dropped_with_a_warning():
    module, tensors = build("orthoformer"), inputs("orthoformer")
    with pytest.warns(UserWarning, match="att_mask has no effect"):
        module(*tensors, att_mask=torch.ones(13, 13))


def test_pooling_windows_that_change_the_grid():
    x = inputs("pooling")[0]
    for options in ({"pool_size": 4}, {"stride": 2}, {"padding": 0}, {"pool_size": 0}):
        with pytest.raises(ValueError, match="pool_size is"):
            build("pooling", **options)(x)


def test_visual_attention_state():
    """0.0.12, under the names of checkpoints."""
    names = [f"{name}.{kind}" for name in ("block.0", "block.2.conv0") for kind in ("weight", "bias")]
    names += [
        f"{name}.{kind}" for name in ("block.2.conv_spatial", "block.2.conv1", "block.3") for kind in ("weight", "bias")
    ]
    assert list(build("visual").state_dict()) == names


def test_compositional_refuses_rules_that_do_not_divide():
    with pytest.raises(AssertionError, match="dim_attn is 25, expected a multiple of 3"):
        build("compositional", dim_attn=25)


@pytest.mark.parametrize("name", ["lambda", "linformer", "nystrom", "orthoformer"])
def test_counts_of_nothing(name):
    option = "seq_len" if name in ("lambda", "linformer") else "num_landmarks"
    with pytest.raises(AssertionError, match=f"{option} is 0, expected at least 1"):
        build(name, **{option: 0})


MAPS = ["sm_reg", "sm_hyp", "sm_orf"]


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("causal", [False, True])
def test_favor_is_near_exact_attention(kind, causal):
    """The mean squared error of 50 draws at K = 10, S = 20: 0.09 where causal, the formula's bound 0.23 otherwise."""
    torch.manual_seed(0)
    errors = []
    for _ in range(50):
        q, k, v = (torch.randn(1, 20, 10) for _ in range(3))
        module = build_attention({"name": "favor", "dim_head": 10, "causal": causal, "feature_map_type": kind})
        keep = reference.triangle(20, 20).to(q.device) if causal else None
        errors.append((module(q, k, v) - reference.softmax_attention(q, k, v, keep)).square().mean())
    assert torch.stack(errors).mean() < (0.09 if causal else 0.23)


def test_favor_one_map_for_queries_and_keys():
    """0.0.9: drawn once, and again after n calls; in no state dict."""
    module, tensors = build("favor", iter_before_redraw=2), inputs("favor")
    drawn = []
    for _ in range(5):
        module(*tensors)
        drawn.append(module.feature_map.features)
    assert drawn[0] is drawn[1] and drawn[2] is drawn[3] and len({id(t) for t in drawn}) == 3
    assert drawn[0].shape == (DIM, module.feature_map.dim_feature_map) and not module.state_dict()
    once = build("favor")
    once(*tensors)
    before = once.feature_map.features
    once(*tensors)
    assert once.feature_map.features is before


@pytest.mark.parametrize("causal", [False, True])
def test_favor_in_half_precision(causal):
    """0.0.4: finite and close to fp32, with large inputs too."""
    module, tensors = build("favor", causal=causal), [3 * t for t in inputs("favor")]
    expected = call("favor", module, tensors)
    out = call("favor", module, [t.half() for t in tensors])
    assert out.dtype == torch.half and out.isfinite().all() and torch.allclose(out.float(), expected, atol=0.02)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("causal", [False, True])
def test_favor_trainability(kind, causal):
    """0.0.4: queries, keys and values have gradients, those of finite differences; over several chunks."""
    module = build("favor", causal=causal, feature_map_type=kind, dim_features=6)
    tensors = [torch.randn(1, 300, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    got = with_gradients(lambda: call("favor", module, tensors), tensors)
    exact = with_gradients(lambda: formula("favor", module, tensors), tensors)
    assert max(error(got, exact)) < 1e-10 and all(t.abs().max() > 0 for t in got[1:])


def test_favor_features():
    for kind in MAPS:
        module, x = build("favor", feature_map_type=kind), torch.randn(2, 9, DIM, dtype=torch.float64)
        features = module.feature_map(x)
        omega = module.feature_map.features.double()
        expected = reference.favor_features(x.cpu(), omega.cpu(), module.feature_map.paired)
        assert features.shape[-1] == module.feature_map.dim_features == 32
        assert torch.allclose(features.cpu(), expected)
    with pytest.raises(AssertionError, match="dim_features is 5, expected an even number"):
        build("favor", dim_features=5)
    with pytest.raises(AssertionError, match="expected one of them"):
        build_attention({"name": "favor"})


def test_favor_directions_are_orthogonal():
    matrices = build("favor").feature_map._get_random_ortho_matrix
    plain = matrices(2, 6, "cpu")
    assert torch.allclose(plain @ plain.transpose(1, 2), torch.eye(6, device="cpu").expand(2, 6, 6), atol=1e-5)
    scaled = matrices(500, 6, "cpu", NormDistribution.Xi)
    assert abs(float(scaled.norm(dim=-1).mean()) - 6**0.5) < 0.15


def test_flags_are_those_of_the_mechanisms():
    flags = {name: vars(build(name)) for name in NAMES}
    assert {n for n in NAMES if flags[n]["requires_skip_multi_head"]} == set(WHOLE)
    assert {n for n in NAMES if flags[n]["requires_squared_context"]} == set(GRID)
    takes_masks = {"scaled_dot_product", "compositional", "local", "random"}
    assert {n for n in NAMES if flags[n]["supports_attention_mask"]} == takes_masks
    assert {n for n in NAMES if flags[n]["supports_key_padding_mask"]} == {"nystrom"}
    same_lengths = {"lambda", "linformer", "nystrom", *PATTERNS}
    assert {n for n in NAMES if flags[n]["requires_same_k_q_dimensions"]} == same_lengths
    assert issubclass(type(build("nystrom")), Attention)
