"""linear_attention against fp64 over all pairs: maps, decay, packing, states, gradients, causality and bad input."""

import itertools

import linear_attention_reference as reference
import pytest
import torch

import xformers  # noqa: F401
from xformers.ops import linear_attention

BATCH, HEADS, DIM, DIM_V, FEATURES = 2, 3, 10, 7, 12
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OMEGA = {"given": None, "exp": FEATURES, "paired": FEATURES // 2}


def problem(kind="paired", seqlen=70, dtype=torch.float32, seed=0, keys=None, packed=(), **options):
    """The arguments of a call; decay and state: whether it has them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    batch = 1 if packed else BATCH
    seqlen = packed[-1] if packed else seqlen
    keys = keys or seqlen
    q, k = random(batch, seqlen, HEADS, DIM), random(batch, keys, HEADS, DIM)
    if kind == "given":  # as weights are: no denominator is near 0
        q, k = q.abs() + 0.1, k.abs() + 0.1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {"q": q, "k": k, "v": random(batch, keys, HEADS, DIM_V)}
    if kind != "given":
        arguments |= {"omega": random(DIM, OMEGA[kind], dtype=wide), "paired": kind == "paired"}
    if options.pop("decay", False):
        arguments["log_decay"] = -random(batch, seqlen, HEADS, dtype=wide).abs()
    normalize = options.get("normalize", True)
    if options.pop("state", False):
        count = FEATURES if kind != "given" else DIM
        sequences = len(packed) - 1 if packed else batch
        arguments["state"] = random(sequences, HEADS, count, DIM_V + normalize, dtype=wide).abs()
    if packed:
        arguments["cu_seqlens"] = torch.tensor(packed, dtype=torch.int32)
    return arguments | options


def differentiable(arguments):
    names = ("q", "k", "v", "log_decay", "state")
    return {n: t.detach().clone().requires_grad_() if n in names else t for n, t in arguments.items()}


def run(function, arguments, grads):
    """Results and gradients by name."""
    arguments = differentiable(arguments)
    results = function(**arguments)
    leaves = {n: t for n, t in arguments.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    found = torch.autograd.grad(
        results, list(leaves.values()), [g.to(r.dtype) for g, r in zip(grads, results, strict=True)]
    )
    return dict(zip(["out", "final_state", *("d" + n for n in leaves)], [*results, *found], strict=True))


def converted(arguments, dtype):
    floating = {n: t.to(dtype) for n, t in arguments.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    return arguments | floating


def check(arguments, seed=100):
    dtype = arguments["q"].dtype
    exact_arguments = converted(arguments, torch.float64)
    with torch.no_grad():
        shapes = [t.shape for t in reference.linear_attention(**exact_arguments)]
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    ours = run(lambda **a: linear_attention(**a, return_state=True), arguments, grads)
    exact = run(reference.linear_attention, exact_arguments, grads)
    plain = run(reference.linear_attention, converted(arguments, dtype), grads) if dtype.itemsize == 2 else {}
    for name, expected in exact.items():
        got = ours[name]
        assert got.shape == expected.shape, name
        largest = expected.abs().max().clamp_min(1 if name[0] == "d" else 0)  # terms of a gradient may cancel
        error = (got.double() - expected).abs().max()
        if plain:  # and one rounding of the result
            allowed = 2 * (plain[name].double() - expected).abs().max() + torch.finfo(got.dtype).eps * largest
        else:
            allowed = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype] * largest
        assert error <= allowed, f"{name}: {error:.3g}, allowed {allowed:.3g}, largest {largest:.3g}"
    assert ours["out"].dtype == dtype
    assert ours["final_state"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("seqlen", [1, 5, 64, 131])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("kind", OMEGA)
def test_values_and_gradients(kind, normalize, causal, seqlen):
    check(problem(kind, seqlen, causal=causal, normalize=normalize))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", OMEGA)
def test_dtypes(kind, causal, dtype):
    check(problem(kind, 77, dtype, causal=causal, state=True, decay=causal))


@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("kind", OMEGA)
@pytest.mark.parametrize("options", [("decay",), ("state",), ("decay", "state")], ids="+".join)
def test_decay_and_state(kind, normalize, options):
    check(problem(kind, 100, causal=True, normalize=normalize, **dict.fromkeys(options, True)))
    if "decay" not in options:
        check(problem(kind, 100, keys=33, normalize=normalize, state=True))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", OMEGA)
def test_packed(kind, causal):
    """An empty sequence, one token, and more than a chunk."""
    check(problem(kind, packed=(0, 3, 3, 4, 90, 101), causal=causal, state=True, decay=causal))


def test_more_keys_than_queries_and_fewer():
    for queries, keys in ((3, 130), (130, 3)):
        check(problem("paired", queries, keys=keys))


@pytest.mark.parametrize("decay", [False, True], ids=["steady", "decaying"])
@pytest.mark.parametrize("kind", OMEGA)
def test_in_parts(kind, decay):
    """A prefix, then token by token: the state carries everything."""
    arguments = problem(kind, 80, causal=True, decay=decay)
    whole, last = linear_attention(**arguments, return_state=True)
    outs, state = [], None
    for begin, end in itertools.pairwise([0, 70, *range(71, 81)]):
        part = {n: t[:, begin:end] if n in ("q", "k", "v", "log_decay") else t for n, t in arguments.items()}
        out, state = linear_attention(**part, state=state, return_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OMEGA)
def test_future_tokens_change_nothing(kind):
    arguments = problem(kind, 90, causal=True, decay=True)
    before = linear_attention(**arguments)
    for name in ("q", "k", "v", "log_decay"):
        changed = arguments[name].clone()
        changed[:, 75:] = -9.0
        assert torch.equal(linear_attention(**arguments | {name: changed})[:, :75], before[:, :75]), name


@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("kind", OMEGA)
def test_nan_reaches_no_other_row(kind, name):
    """In token 70 of the first batch element: out and dq come of tokens before, dk and dv of queries behind."""
    arguments = problem(kind, 90, causal=True)
    good = {n: arguments[n] for n in ("q", "k", "v")} | {"grad": torch.ones(BATCH, 90, HEADS, DIM_V)}
    bad = {n: t.clone() for n, t in good.items()}
    bad[name][0, 70] = torch.nan

    def results(tensors):
        leaves = [tensors[n].detach().requires_grad_() for n in ("q", "k", "v")]
        out = linear_attention(**arguments | dict(zip(("q", "k", "v"), leaves, strict=True)))
        return [out, *torch.autograd.grad(out, leaves, tensors["grad"])]

    expected, got = results(good), results(bad)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one[1], other[1])
    for one, other in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(one[0, :70], other[0, :70], rtol=1e-4, atol=1e-5)
    if name in ("q", "grad"):
        for one, other in zip(got[2:], expected[2:], strict=True):
            torch.testing.assert_close(one[0, 71:], other[0, 71:], rtol=1e-4, atol=1e-5)
    assert any(bool(t[0].isnan().any()) for t in got)


def test_minus_infinite_decay_starts_afresh():
    arguments = problem("paired", 100, causal=True, decay=True)
    arguments["log_decay"][:, 40] = -torch.inf
    out = linear_attention(**arguments)
    later = {n: t[:, 40:] if n in ("q", "k", "v", "log_decay") else t for n, t in arguments.items()}
    torch.testing.assert_close(out[:, 40:], linear_attention(**later), rtol=1e-5, atol=1e-6)
    kinds = {"return_state": True}
    grads = [torch.ones_like(t) for t in linear_attention(**arguments, **kinds)]
    results = run(lambda **a: linear_attention(**a, **kinds), arguments, grads)
    assert all(bool(t.isfinite().all()) for t in results.values())


def test_large_inputs_do_not_overflow():
    """Queries by their own largest exponent; where every key is seen, keys by theirs."""
    for causal in (False, True):
        arguments = problem("paired", 90, torch.float64, causal=causal)
        arguments["q"] = 30 * arguments["q"]
        if not causal:
            arguments["k"] = 12 * arguments["k"]
        out = linear_attention(**converted(arguments, torch.float32))
        assert bool(out.isfinite().all())
        torch.testing.assert_close(out.double(), linear_attention(**arguments), rtol=1e-3, atol=1e-3)


def test_a_row_without_weight_is_zero():
    q = torch.ones(1, 3, 1, 4)
    q[:, 1] = 0
    leaves = [t.requires_grad_() for t in (q, torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 2))]
    out = linear_attention(*leaves)
    assert out[0, :, 0, 0].tolist() == [1, 0, 1]
    out.sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in leaves)
    empty = linear_attention(torch.ones(1, 3, 1, 4), torch.ones(1, 0, 1, 4), torch.ones(1, 0, 1, 2))
    assert empty.tolist() == torch.zeros(1, 3, 1, 2).tolist()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_empty(shape):
    q = torch.empty(*shape, 2, 4, requires_grad=True)
    out, state = linear_attention(q, q, q, causal=True, return_state=True)
    assert out.shape == (*shape, 2, 4) and not bool(state.any())
    (out.sum() + state.sum()).backward()
    assert q.grad is not None and q.grad.shape == q.shape


def test_any_strides():
    arguments = problem("paired", 40, causal=True)
    expected = linear_attention(**arguments)
    moved = {n: arguments[n].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for n in ("q", "k", "v")}
    moved["omega"] = arguments["omega"].t().contiguous().t()
    assert torch.equal(linear_attention(**arguments | moved), expected)
    shared = {n: arguments[n][:, :, :1].expand(-1, -1, HEADS, -1) for n in ("k", "v")}
    copied = {n: t.contiguous() for n, t in shared.items()}
    assert torch.equal(linear_attention(**arguments | shared), linear_attention(**arguments | copied))


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def one_head(arguments):
    """Fewer heads than threads: these share the tokens, in parts of four chunks or more."""
    cut = {n: t[:1, :, :1] for n, t in arguments.items() if n in ("q", "k", "v", "log_decay")}
    if "state" in arguments:
        cut["state"] = arguments["state"][: len(arguments.get("cu_seqlens", "ab")) - 1, :1]
    return arguments | cut


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("options", [(), ("state",), ("causal",), ("causal", "decay", "state")], ids="+".join)
@pytest.mark.parametrize("kind", OMEGA)
def test_threads_share_a_head(kind, options):
    arguments = one_head(problem(kind, 800, **dict.fromkeys(options, True)))
    check(arguments)
    if "causal" in options:
        before = linear_attention(**arguments)
        assert torch.equal(linear_attention(**arguments), before)  # bits, with the same threads
        arguments["v"][:, 700:] = -9.0
        assert torch.equal(linear_attention(**arguments)[:, :700], before[:, :700])
    else:
        check(one_head(problem(kind, 70, keys=900, **dict.fromkeys(options, True))))


@pytest.mark.usefixtures("three_threads")
def test_threads_share_packed_sequences():
    """Sequences of 3 tokens and of none have parts without tokens."""
    torch.set_num_threads(9)
    check(one_head(problem("paired", packed=(0, 3, 3, 1600), causal=True, decay=True, state=True)))
    check(one_head(problem("paired", packed=(0, 3, 3, 1600), state=True)))


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_and_threads_that_share_a_head(name):
    """out and dq come of tokens before; of a query, dk and dv of later ones know nothing."""
    arguments = one_head(problem("exp", 800, causal=True, decay=True))
    results = []
    for value in (1.0, torch.nan):
        arguments[name][:, 300] = value
        leaves = [arguments[n].detach().requires_grad_() for n in ("q", "k", "v")]
        out = linear_attention(**arguments | dict(zip(("q", "k", "v"), leaves, strict=True)))
        results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    good, bad = results
    assert all(bool(t.isfinite().all()) for t in good)
    torch.testing.assert_close([t[:, :300] for t in bad[:2]], [t[:, :300] for t in good[:2]], rtol=1e-4, atol=1e-5)
    if name == "q":
        torch.testing.assert_close([t[:, 301:] for t in bad[2:]], [t[:, 301:] for t in good[2:]], rtol=1e-4, atol=1e-5)
    assert bool(bad[0][:, 300].isnan().any())


def test_same_bits_with_any_number_of_threads():
    """Where there is a head for each."""
    arguments = problem("exp", 600, causal=True, decay=True)
    threads, outs = torch.get_num_threads(), []
    try:
        for count in (1, 2, BATCH * HEADS):
            torch.set_num_threads(count)
            outs.append(linear_attention(**arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", OMEGA)
def test_gradcheck(kind, causal):
    arguments = problem(kind, 6, torch.float64, causal=causal, decay=causal, state=True)
    leaves = {n: t for n, t in differentiable(arguments).items() if isinstance(t, torch.Tensor) and t.requires_grad}

    def function(*tensors):
        return linear_attention(**arguments | dict(zip(leaves, tensors, strict=True)), return_state=True)

    assert torch.autograd.gradcheck(function, list(leaves.values()), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"causal": True, "decay": True, "state": True}], ids=["full", "causal"])
def test_opcheck(options):
    arguments = differentiable(problem("paired", 20, **options)) | {"return_state": True}
    names = [a.name for a in torch.ops.xformers.linear_attention.default._schema.arguments]
    defaults = {"log_decay": None, "state": None, "cu_seqlens": None, "causal": False, "normalize": True}
    torch.library.opcheck(torch.ops.xformers.linear_attention, tuple((defaults | arguments)[n] for n in names))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_compile(causal):
    arguments = problem("paired", 70, causal=causal, decay=causal, state=True)

    def function(**arguments):
        return linear_attention(**arguments, return_state=True)

    with torch.no_grad():
        grads = [torch.ones_like(t) for t in function(**arguments)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for name, expected in run(function, arguments, grads).items():
        assert torch.equal(run(compiled, arguments, grads)[name], expected), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Inputs as they are, computed in fp32; of several dtypes in the widest."""
    arguments = problem("paired", 70, causal=True)
    expected = linear_attention(**arguments)
    with torch.autocast("cpu", dtype):
        assert torch.equal(linear_attention(**arguments), expected)
        mixed = linear_attention(**arguments | {"q": arguments["q"].to(dtype)})
        assert mixed.dtype == torch.float32
        assert linear_attention(**{n: converted(arguments, dtype)[n] for n in ("q", "k", "v")}).dtype == dtype


FORMULA = [
    {},
    {"causal": True, "decay": True, "state": True},
    {"keys": 200, "state": True},
    {"normalize": False, "causal": True, "decay": True},
    {"packed": (0, 3, 3, 150), "causal": True, "decay": True, "state": True},
]


@pytest.mark.parametrize("options", FORMULA, ids=lambda x: "-".join(x) or "full")
@pytest.mark.parametrize("kind", OMEGA)
def test_formula_of_devices_without_a_kernel(kind, options):
    """Called on CPU tensors by its key: results and gradients of the kernel."""
    arguments = problem(kind, 150, torch.float64, **options)
    forward, backward = (
        torch.ops.xformers.linear_attention.default,
        torch.ops.xformers.linear_attention_backward.default,
    )
    defaults = {"omega": None, "log_decay": None, "state": None, "cu_seqlens": None, "paired": False, "causal": False}
    arguments = defaults | {"normalize": True} | arguments
    names = [a.name for a in forward._schema.arguments]
    given = [(arguments | {"return_state": True})[n] for n in names]
    out, denominator, state = forward(*given)
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    results = forward._op_dk(key, *given)
    torch.testing.assert_close(results[0], out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[2], state, rtol=1e-10, atol=1e-10)
    grads = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) for t in (out, state)]
    expected = backward(grads[0], *given, out=out, denominator=denominator, grad_state=grads[1])
    kept = {"out": results[0], "denominator": results[1], "grad_state": grads[1]}
    for got, exact in zip(backward._op_dk(key, grads[0], *given, **kept), expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


def test_double_backward_is_refused():
    arguments = differentiable(problem("paired", 5))
    (dq,) = torch.autograd.grad(linear_attention(**arguments).sum(), arguments["q"], create_graph=True)
    with pytest.raises(RuntimeError):
        dq.sum().backward()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q": torch.ones(2, 70, 3)}, r"q is .*expected \[batch, seqlen, heads, head_dim\]"),
        ({"k": torch.ones(2, 70, 3, 9)}, "k.head_dim is 9, expected 10"),
        ({"k": torch.ones(2, 70, 3, 10).half()}, "k.dtype is fp16, expected fp32"),
        ({"v": torch.ones(2, 69, 3, 7)}, "v.seqlen is 69, expected 70"),
        ({"v": torch.ones(2, 70, 1, 7)}, "v is 1, expected 3.*expand"),
        ({"k": torch.ones(2, 9, 3, 10), "v": torch.ones(2, 9, 3, 7)}, "k.seqlen is 9, expected 70"),
        ({"omega": torch.ones(9, 6)}, "omega.head_dim is 9, expected 10"),
        ({"omega": None}, "paired is True without omega"),
        ({"omega": torch.ones(10, 0)}, "at least one column"),
        ({"log_decay": torch.ones(2, 70)}, "log_decay is"),
        ({"causal": False, "log_decay": torch.ones(2, 70, 3)}, "log_decay is given .*Fix: set causal"),
        ({"state": torch.ones(2, 3, 12, 7)}, "state is"),
        ({"state": torch.ones(2, 3, 12, 8).double()}, "state is .*fp64.*expected fp32"),
        ({"cu_seqlens": torch.tensor([0, 70], dtype=torch.int32)}, "batch is 2, expected 1"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_input(change, said):
    with pytest.raises(ValueError, match=said):
        linear_attention(**problem("paired", 70, causal=True) | change)


@pytest.mark.parametrize("offsets", [(0, 5, 4, 70), (1, 70), (0, 69), (0, 71)], ids=str)
def test_bad_offsets(offsets):
    arguments = problem("paired", packed=(0, 70)) | {"cu_seqlens": torch.tensor(offsets, dtype=torch.int32)}
    with pytest.raises(ValueError, match=r"cu_seqlens\[\d\] is \d+, expected offsets that rise from 0 to the 70"):
        linear_attention(**arguments)
