"""xformers.checkpoint against the same function without it: outputs, gradients, buffers, random numbers."""

import copy
import functools
import gc
import random

import pytest
import torch
from test_modules import INPUTS, MODULES, attention_inputs, group_of_one  # noqa: F401  (a fixture)
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from xformers.checkpoint import (
    SelectiveCheckpointWrapper,
    checkpoint,
    get_optimal_checkpoint_policy,
    list_operators,
    selective_checkpoint_context_fn,
    selective_checkpoint_wrapper,
)
from xformers.components import Attention, InputProjection, MultiHeadDispatch
from xformers.components.attention.visual import LKA

import xformers
from xformers.ops import SwiGLU, fmha

BUDGETS = [0, 0.03, 0.05, 0.1, 0.3, 0.5, 0.8, 1]


def network():
    """In-place operators, dropout, running statistics, residual views."""
    return nn.Sequential(
        nn.Linear(32, 64), nn.CELU(inplace=True), nn.Dropout(0.3), nn.Linear(64, 32), nn.BatchNorm1d(32),
        nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(32, 16), nn.Dropout(0.1),
    )  # fmt: skip


class Coin:
    """A stateful policy: keeps about half, the same ones each time it begins anew."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def __call__(self, ctx, func, *args, **kwargs):
        return self.random.random() < 0.5


POLICIES = {
    "default": None,
    "nothing": [],
    "relu": ["aten.relu_.default"],
    "random alone": ["aten.bernoulli_.float", "aten.empty_like.default"],
    "an object": [torch.ops.aten.addmm.default],
    "a packet": [torch.ops.aten.addmm],
    "everything": CheckpointPolicy.MUST_SAVE,
    "a function": lambda ctx, func, *args, **kwargs: "addmm" in str(func),
    "a function of policies": lambda ctx, func, *args, **kwargs: CheckpointPolicy.PREFER_SAVE,
    **{f"coin {seed}": Coin(seed) for seed in range(10)},
}
each_policy = pytest.mark.parametrize("policy", POLICIES)


def trained(module, inputs, run, autocast=False, after=False):
    """Outputs, gradients and buffers of one step of a copy; `run` calls the module."""
    module = copy.deepcopy(module)
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    torch.manual_seed(1)
    with torch.autocast("cpu", enabled=autocast, dtype=torch.bfloat16):
        out = run(module)(*inputs)
    behind = torch.rand(3)
    out = torch.stack(out) if isinstance(out, tuple) else out
    if after:
        out.add_(1)  # behind the region, into what it may have kept
    (out.float() * torch.arange(1, out.numel() + 1).view_as(out).float().cos()).sum().backward()
    grads = [t.grad for t in (*inputs, *module.parameters())]
    return [out.detach(), behind, torch.rand(3), *grads, *module.buffers()]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), i


def checkpointed(policy):
    return lambda module: functools.partial(checkpoint, module, policy_fn=policy)


@each_policy
@pytest.mark.parametrize("input_grad", [True, False], ids=["input", "parameters"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_policies(policy, input_grad, autocast):
    torch.manual_seed(0)
    module, x = network(), torch.randn(8, 32, requires_grad=input_grad)
    expected = trained(module, [x], lambda m: m, autocast)
    assert_same(trained(module, [x], checkpointed(POLICIES[policy]), autocast), expected)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("times", ["measure", "estimate"])
def test_budgets(budget, autocast, times):
    torch.manual_seed(0)
    module, x = network(), torch.randn(8, 32, requires_grad=True)
    expected = trained(module, [x], lambda m: m, autocast)
    wrap = functools.partial(selective_checkpoint_wrapper, memory_budget=budget, times=times)
    assert_same(trained(module, [x], wrap, autocast), expected)


@pytest.mark.parametrize("policy", ["default", "nothing", "everything", "coin 0", "coin 1"])
def test_written_behind_the_region(policy):
    """What was kept and then written to is recomputed, dropout's mask included."""
    torch.manual_seed(0)
    module, x = network()[:-1].append(nn.LayerNorm(16)).append(nn.ReLU()).append(nn.Dropout(0.1)), torch.randn(8, 32)
    expected = trained(module, [x], lambda m: m, after=True)
    assert_same(trained(module, [x], checkpointed(POLICIES[policy]), after=True), expected)


class Counting(TorchDispatchMode):
    """Below the modes of a checkpoint, this one sees what really runs."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


def looked_on(module):
    """The module under a mode that does nothing: where one looks on, attentions do not join their products."""

    def run(*inputs):
        with Counting():
            return module(*inputs)

    return run


class Called(nn.Module):
    """A module with the inputs that it takes, and one tensor of what it returns."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        if isinstance(self.module, LKA):
            inputs = [x[:, :3, :16].unflatten(-1, (4, 4))]
        elif isinstance(self.module, Attention | InputProjection | MultiHeadDispatch):
            inputs = attention_inputs(self.module, x[:, :4])
        else:
            inputs = INPUTS.get(type(self.module).__name__, lambda x: [x])(x)
        out = self.module(*inputs)
        return torch.cat([t.float().flatten() for t in (out if isinstance(out, tuple) else [out]) if t is not None])


# ReversibleSequence recomputes itself, and loses its parameters' gradients under saved-tensor hooks, PyTorch's own too.
@pytest.mark.parametrize("name", [name for name in MODULES if name != "ReversibleSequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"], ids=str)
@pytest.mark.parametrize("policy", ["default", "nothing", "everything", "coin 2", 0.3], ids=str)
def test_modules(name, dtype, policy):
    torch.manual_seed(0)
    if isinstance(policy, float) and (
        name.startswith("SM") or name in ("SoftMaxMap", "attention favor", "attention random")
    ):
        pytest.skip("keeps something of its calls in Python, those in which a policy is found included")
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
    autocast = dtype == "autocast"
    dtype = torch.float32 if autocast else dtype
    module, x = Called(module.to(dtype)), torch.randn(3, 5, 32, dtype=dtype, requires_grad=True)
    if isinstance(policy, float):
        run = functools.partial(selective_checkpoint_wrapper, memory_budget=policy)
    else:
        run = checkpointed(POLICIES[policy])
    try:
        expected = trained(module, [x], looked_on, autocast)
    except (NotImplementedError, ValueError, RuntimeError) as error:  # not in this dtype, or without gradients
        pytest.skip(str(error))
    assert_same(trained(module, [x], run, autocast), expected)


class Attend(nn.Module):
    def __init__(self, p, bias):
        super().__init__()
        self.qkv, self.p, self.bias = nn.Linear(32, 96), p, bias

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).unbind(-3)
        return fmha.memory_efficient_attention(q, k, v, attn_bias=self.bias, p=self.p).flatten(-2)


BIASES = {
    "none": None,
    "causal": fmha.attn_bias.LowerTriangularMask(),
    "packed": fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens([3, 2, 4]),
    "window": fmha.attn_bias.LocalAttentionFromBottomRightMask(window_left=2, window_right=1),
    "tensor": torch.randn(1, 1, 1, 9).expand(1, 2, 9, 9),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("policy", [None, [], ["xformers_flash.flash_fwd.default"], "coin"], ids=str)
def test_attention(bias, p, autocast, policy):
    torch.manual_seed(0)
    module, x = nn.Sequential(Attend(p, BIASES[bias]), nn.Dropout(0.2)), torch.randn(1, 9, 32, requires_grad=True)
    policy = Coin(5) if policy == "coin" else policy
    expected = trained(module, [x], lambda m: m, autocast)
    assert_same(trained(module, [x], checkpointed(policy), autocast), expected)


ATTENTION = (
    "xformers.attention_forward.default",
    "xformers_flash.flash_fwd.default",
    "xformers.efficient_attention_forward_cutlass.default",
)


def calls_of(operators, run):
    with Counting() as counting:
        run()
    return sum(name in operators for name in counting.ran)


def profiled_calls(run):
    """Those of attention in a compiled graph, by PyTorch's profiler."""
    with torch.autograd.profiler.profile() as profile:
        run()
    return sum(e.name == "xformers::attention_forward" for e in profile.function_events)


NAMES = {
    "ours": ["xformers.attention_forward.default"],
    "flash": ["xformers_flash.flash_fwd.default"],
    "flash3": ["xformers_flash3.flash_fwd.default"],
    "cutlass": ["xformers.efficient_attention_forward_cutlass.default"],
    "an object": [torch.ops.xformers_flash.flash_fwd.default],
    "the default": None,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", [*NAMES, "none of them"])
def test_names_of_attention_take_effect(dtype, policy):
    q, k, v = (torch.randn(1, 9, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = fmha.attn_bias.LowerTriangularMask()

    def attend(q, k, v):
        return fmha.memory_efficient_attention(q, k, v, attn_bias=mask).sin()

    def run(function):
        function(q, k, v).sum().backward()

    assert calls_of(ATTENTION, lambda: run(attend)) == 1
    policy_fn = NAMES.get(policy, ["aten.mm.default"])
    calls = calls_of(ATTENTION, lambda: run(functools.partial(checkpoint, attend, policy_fn=policy_fn)))
    assert calls == (2 if policy == "none of them" else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("contexts", ["PyTorch's", "ours"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_policies_compare_the_operators_of_the_contracts(dtype, contexts, compiled):
    """lingua's policy, as it is written: attention is called once."""
    torch._dynamo.reset()
    q, k, v = (torch.randn(1, 9, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens([4, 5])
    expected_name = {
        torch.float32: torch.ops.xformers.efficient_attention_forward_cutlass.default,
        torch.bfloat16: torch.ops.xformers_flash.flash_fwd.default,
    }[dtype]
    keep, seen = {expected_name}, []

    def policy(ctx, op, *args, **kwargs):
        if "attention" in str(op) or "flash" in str(op):
            seen.append(op)
        return CheckpointPolicy.MUST_SAVE if op in keep else CheckpointPolicy.PREFER_RECOMPUTE

    def attend(q, k, v):
        return fmha.memory_efficient_attention(q, k, v, attn_bias=mask).sin()

    context_fn = functools.partial(
        create_selective_checkpoint_contexts if contexts == "PyTorch's" else selective_checkpoint_context_fn, policy
    )

    def function(q, k, v):
        return torch_checkpoint(attend, q, k, v, use_reentrant=False, context_fn=context_fn)

    function = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    expected = torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))
    out = function(q, k, v)
    assert torch.equal(out, attend(q, k, v)) and set(seen) == {expected_name}
    assert_same(torch.autograd.grad(out.sum(), (q, k, v)), expected)
    if compiled:
        assert profiled_calls(lambda: function(q, k, v).sum().backward()) == 1
    else:
        assert calls_of(ATTENTION, lambda: function(q, k, v).sum().backward()) == 1


def test_attention_has_its_own_name_elsewhere():
    q = torch.randn(1, 4, 2, 16, requires_grad=True)
    with torch.autograd.profiler.profile() as profile:
        fmha.memory_efficient_attention(q, q, q).sum().backward()
    assert not any("cutlass" in e.key or "flash" in e.key for e in profile.key_averages())


def test_list_operators():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    aten = torch.ops.aten
    pair = [aten.t.default, aten.addmm.default, aten.relu.default, aten.detach.default]
    assert list_operators(module, torch.randn(2, 4)) == 2 * pair


def test_package_exports():
    assert xformers.checkpoint is checkpoint and xformers.list_operators is list_operators
    assert xformers.get_optimal_checkpoint_policy is get_optimal_checkpoint_policy
    assert xformers.selective_checkpoint_wrapper is selective_checkpoint_wrapper


def test_stateful_policies_begin_anew_in_both_passes():
    seen = []

    class Counting:
        count = 0

        def __call__(self, ctx, func, *args, **kwargs):
            seen.append((ctx.is_recompute, self.count))
            self.count += 1
            return False

        def __deepcopy__(self, memo):
            return Counting()

    x = torch.randn(3, requires_grad=True)
    checkpoint(lambda x: x.sin().exp(), x, policy_fn=Counting()).sum().backward()
    assert seen == [(False, 0), (False, 1), (True, 0), (True, 1)]


def test_no_grad_keeps_nothing():
    x, asked = torch.randn(3, requires_grad=True), []
    with torch.no_grad():
        out = checkpoint(lambda x: x.sin(), x, policy_fn=lambda *args: asked.append(args))
    assert torch.equal(out, x.sin()) and not asked and not out.requires_grad


def test_kept_memory_goes_with_the_graph():
    x, made = torch.randn(3, requires_grad=True), []

    def function(x):
        y = x.sin()
        made.append(StorageWeakRef(y.untyped_storage()))
        return y.exp().cos()

    gc.collect()
    gc.disable()
    try:
        out = checkpoint(function, x, policy_fn=CheckpointPolicy.MUST_SAVE)
        assert not made[0].expired()
        del out
        assert made[0].expired()
        out = checkpoint(function, x, policy_fn=[])
        assert made[1].expired()
        out.sum().backward()
    finally:
        gc.enable()


def test_in_place_between_reads():
    """A kept tensor that was read, then written: both readers see what they saw."""

    def function(x):
        y = x * 3
        a = y.exp()
        y.mul_(2)
        b = y.sin()
        y.view(-1).add_(1)
        return a * b + y.cos()

    x = torch.randn(5, dtype=torch.double)
    keeps = {
        "mul": lambda ctx, f, *a, **k: f is torch.ops.aten.mul.Tensor,
        "all": CheckpointPolicy.MUST_SAVE,
        "in place": lambda ctx, f, *a, **k: str(f).split(".")[1].endswith("_"),
        "none": [],
    }
    plain = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="inplace"):  # plain autograd cannot: sin saved y
        function(plain).sum().backward()

    def allowed(x):
        y = x * 3
        a = (y + 0).exp()
        y.mul_(2)
        b = (y + 0).sin()
        y.view(-1).add_(1)
        return a * b + (y + 0).cos()

    allowed(plain).sum().backward()
    for name, policy in keeps.items():
        y = x.clone().requires_grad_()
        checkpoint(allowed, y, policy_fn=policy).sum().backward()
        assert torch.equal(y.grad, plain.grad), name


def test_tensors_from_outside_are_written_once():
    buffer, x = torch.zeros(3), torch.randn(3, requires_grad=True)

    def function(x):
        buffer.add_(x.detach())
        return (x * x).sin()

    checkpoint(function, x, policy_fn=[]).sum().backward()
    assert torch.equal(buffer, x.detach())


@pytest.mark.parametrize("policy", ["nothing", "everything", "coin 3"])
def test_generators_of_ones_own(policy):
    """An explicit generator draws the same numbers again, and goes on from where the forward pass left it."""
    results = []
    for run in (lambda f, x: f(x), functools.partial(checkpoint, policy_fn=POLICIES[policy])):
        generator = torch.Generator().manual_seed(5)
        x = torch.arange(6.0, requires_grad=True)

        def function(x, generator=generator):
            noise = torch.rand(6, generator=generator)
            return (x * noise).sin() * torch.rand(6, generator=generator)

        run(function, x).sum().backward()
        results.append([x.grad, torch.rand(2, generator=generator)])
    assert_same(*results)


@pytest.mark.parametrize("outer", ["nothing", "default", "everything", "coin 4"])
@pytest.mark.parametrize("inner", ["nothing", "default", "everything", "coin 6"])
def test_nested_regions(outer, inner):
    torch.manual_seed(0)
    module, x = network(), torch.randn(8, 32, requires_grad=True)

    def nested(m):
        def run(x):
            return m[4:](checkpoint(m[:4], x, policy_fn=POLICIES[inner]))

        return functools.partial(checkpoint, run, policy_fn=POLICIES[outer])

    assert_same(trained(module, [x], nested), trained(module, [x], lambda m: m))


def test_nested_regions_call_products_as_often_as_their_policies_say():
    x, w = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    counts = []
    for policy in ([], None):
        inner = functools.partial(checkpoint, lambda x: (x @ w).sin(), policy_fn=policy)
        run = functools.partial(checkpoint, lambda x, f=inner: f(x).exp(), policy_fn=policy)
        counts.append(calls_of(("aten.mm.default",), lambda f=run: f(x).sum().backward()))
    assert counts == [5, 3]  # forward, two of backward; the outer and the inner recomputation


@pytest.mark.parametrize("policy", [None, [], CheckpointPolicy.MUST_SAVE], ids=str)
def test_functions_that_remember(policy):
    """What a function computes once and remembers is left out when it is repeated."""
    remembered = {}

    def function(x):
        if "table" not in remembered:
            remembered["table"] = torch.arange(4.0).mul(0.5).cos()
        return (x * remembered["table"]).mul(2.0).cos()

    x = torch.randn(4, requires_grad=True)
    checkpoint(function, x, policy_fn=policy).sum().backward()
    got, x.grad = x.grad, None
    function(x).sum().backward()
    assert torch.equal(got, x.grad)


def test_a_weight_that_autocast_remembers():
    """Regions that share a weight, and a backward inside of the autocast region."""
    for inside in (False, True):
        results = []
        for run in (lambda f, x: f(x), functools.partial(checkpoint, policy_fn=None)):
            torch.manual_seed(0)
            layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = run(layer, run(layer, x)).float().sum()
                if inside:
                    out.backward()
            if not inside:
                out.backward()
            results.append([x.grad, layer.weight.grad])
        assert_same(*results)


def test_keywords_and_structures():
    def function(x, *, scale, extra):
        return {"out": x * scale, "sum": [x.sum() + extra[0]]}

    x, extra = torch.randn(3, requires_grad=True), [torch.randn(3, requires_grad=True)]
    out = checkpoint(function, x, scale=2.0, extra=extra, determinism_check="none")
    (out["out"].sum() + out["sum"][0].sum()).backward()
    assert torch.equal(x.grad, torch.full((3,), 5.0)) and torch.equal(extra[0].grad, torch.ones(3))


# ---- wrapper ----
def test_wrapper_is_the_module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    wrapper = selective_checkpoint_wrapper(copy.deepcopy(module), policy_fn=[])
    assert isinstance(wrapper, SelectiveCheckpointWrapper)
    assert wrapper.state_dict().keys() == module.state_dict().keys()
    assert [name for name, _ in wrapper.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert wrapper[0].in_features == 3 and wrapper.training
    wrapper.load_state_dict(module.state_dict())
    holder = nn.ModuleDict({"inner": selective_checkpoint_wrapper(module, memory_budget=0.5)})
    assert set(holder.state_dict()) == {"inner.0.weight", "inner.0.bias"}
    assert holder["inner"].memory_budget == 0.5 and holder["inner"].policy_fn is None


@pytest.mark.parametrize(
    "given, text",
    [
        ({}, "expected exactly one"),
        ({"memory_budget": 0.5, "policy_fn": []}, "expected exactly one"),
        ({"memory_budget": -0.1}, "expected a number from 0 to 1"),
        ({"memory_budget": 1.5}, "expected a number from 0 to 1"),
        ({"memory_budget": float("nan")}, "expected a number from 0 to 1"),
    ],
    ids=["none", "both", "negative", "too large", "nan"],
)
def test_wrapper_refuses(given, text):
    with pytest.raises(ValueError, match=text):
        selective_checkpoint_wrapper(nn.ReLU(), **given)


def test_other_policies_are_refused():
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(AssertionError, match="policy_fn is 3, expected None, a list"):
        checkpoint(torch.sin, x, policy_fn=3)
    with pytest.raises(ValueError, match="use_reentrant is True"):
        checkpoint(torch.sin, x, use_reentrant=True)
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        get_optimal_checkpoint_policy(torch.sin, x, memory_budget=2)
    with pytest.raises(ValueError, match="expected 'measure' or 'estimate'"):
        get_optimal_checkpoint_policy(torch.sin, x, memory_budget=1, times="guess")


def test_second_backward():
    x = torch.randn(3, 3, requires_grad=True)
    out = checkpoint(lambda x: (x @ x).sin(), x).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second backward pass .* aten\.mm\.default were kept for one alone.  Fix"):
        out.backward()
    out = checkpoint(lambda x: (x @ x).sin(), x, policy_fn=[]).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)
    assert_same(torch.autograd.grad(out, x), first)


@pytest.mark.parametrize(
    "second, text",
    [
        (
            lambda x: x.cos().exp().tanh(),
            "operator 0 of its recomputation is aten.cos.default, expected aten.sin.default",
        ),
        (
            lambda x: x.sin().tanh().tanh(),
            "operator 1 of its recomputation is aten.tanh.default, expected aten.exp.default",
        ),
        (lambda x: x.sin(), "operator 1 of its recomputation is missing, expected aten.exp.default"),
    ],
    ids=["first", "second", "fewer"],
)
@pytest.mark.parametrize("policy", [[], CheckpointPolicy.MUST_SAVE], ids=str)
def test_other_operators_when_repeated(second, text, policy):
    functions = iter([lambda x: x.sin().exp().tanh(), second])
    x = torch.randn(3, requires_grad=True)
    out = checkpoint(lambda x: next(functions)(x), x, policy_fn=policy).sum()
    with pytest.raises(RuntimeError, match=text):
        out.backward()


# ---- torch.compile ----
@pytest.mark.parametrize("policy", ["default", "nothing", "relu", "a function", "everything", 0.05, 0.5, 1], ids=str)
def test_compiled(policy):
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(32, 64), nn.CELU(inplace=True), nn.LayerNorm(64), SwiGLU(64, 32), nn.Linear(64, 16)
    )
    x = torch.randn(8, 32, requires_grad=True)
    expected = trained(module, [x], lambda m: m)

    def run(m):
        if isinstance(policy, str):
            return torch.compile(
                lambda x: checkpoint(m, x, policy_fn=POLICIES[policy]), fullgraph=True, backend="aot_eager"
            )
        wrapper = selective_checkpoint_wrapper(m, memory_budget=policy)
        compiled = torch.compile(wrapper, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), m(x))
        return compiled

    for a, b in zip(trained(module, [x], run), expected, strict=True):
        torch.testing.assert_close(a, b)
