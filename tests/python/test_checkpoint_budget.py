"""Policies within a budget: what finding one takes, leaves behind and reports, and the peaks that they lead to."""

import copy
import pickle

import pytest
import torch
from test_checkpoint import network
from test_checkpoint_fit import Block
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from xformers.checkpoint import get_optimal_checkpoint_policy, list_operators, selective_checkpoint_wrapper
from xformers.checkpoint._fit import _Step


class Counted(TorchDispatchMode):
    """How often operators run, by name."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] = self.calls.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("times", "most"), [("measure", 30), ("estimate", 1)])
def test_forwards_that_finding_a_policy_takes(times, most):
    """Of operators of every kind: in place, random, into buffers."""
    module, x, forwards = network(), torch.randn(8, 32, requires_grad=True), []
    module.register_forward_hook(lambda *_: forwards.append(1))
    names = [str(operator) for operator in list_operators(module, x)]
    forwards.clear()
    with Counted() as counted:
        get_optimal_checkpoint_policy(module, x, memory_budget=0.5, times=times)
    assert 1 <= len(forwards) <= most
    calls = counted.calls
    assert all(calls[name] <= len(forwards) * names.count(name) for name in names if name != "aten.detach.default")


def test_the_time_of_a_function_that_remembers():
    """Its first pass runs operators that the others leave out."""
    known = []

    def function(x):
        known.extend([] if known else [torch.eye(8).exp()])
        return (x @ known[0]).sin()

    policy = get_optimal_checkpoint_policy(function, torch.randn(8, 8, requires_grad=True), memory_budget=1)
    assert policy.names == ["aten.eye.default", "aten.exp.default", "aten.mm.default", "aten.sin.default"]
    assert all(row.seconds > 0 for row in policy.report.rows)


def test_peaks_follow_the_budget():
    """At most 2 % above the straight line from nothing to everything, and never falling."""
    torch.manual_seed(0)
    blocks, x = [Block(64) for _ in range(4)], torch.randn(1, 256, 64, requires_grad=True)
    budgets = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
    peaks = []
    for budget in budgets:
        wrapped = [selective_checkpoint_wrapper(block, memory_budget=budget, times="estimate") for block in blocks]
        for wrapper in wrapped:
            wrapper(x)  # finds the policy
        peaks.append(_Step(nn.Sequential(*wrapped), (x,), {}).peak())
    assert peaks == sorted(peaks) and peaks[0] < 0.7 * peaks[-1]
    for budget, peak in zip(budgets, peaks, strict=True):
        assert peak <= 1.02 * (peaks[0] + budget * (peaks[-1] - peaks[0])), (budget, peaks)


def test_policy_is_found_at_the_first_call_with_gradients():
    wrapper = selective_checkpoint_wrapper(network(), memory_budget=0.5)
    x = torch.randn(8, 32)
    with torch.no_grad():
        wrapper(x)
    assert wrapper.policy_fn is None
    torch.manual_seed(0)
    wrapper(x)
    assert any(wrapper.policy_fn.kept)
    after = torch.rand(2)
    torch.manual_seed(0)
    network_again = wrapper._checkpoint_wrapped_module
    network_again(x)
    assert torch.equal(after, torch.rand(2)) and wrapper.get_policy_fn(x) is wrapper.policy_fn


def test_keyword_arguments_with_a_budget():
    class Scaled(nn.Module):
        def forward(self, x, *, by):
            return (x * by).sin().exp()

    x, by = torch.randn(5, requires_grad=True), torch.randn(5)
    selective_checkpoint_wrapper(Scaled(), memory_budget=0.4)(x, by=by).sum().backward()
    got, x.grad = x.grad, None
    Scaled()(x, by=by).sum().backward()
    assert torch.equal(got, x.grad)


@pytest.mark.parametrize("times", ["measure", "estimate"])
def test_finding_a_policy_leaves_no_trace(times):
    torch.manual_seed(0)
    module, x = network(), torch.randn(8, 32, requires_grad=True)
    state, versions = copy.deepcopy(module.state_dict()), [p._version for p in module.parameters()]
    random_state = torch.get_rng_state()
    policy = get_optimal_checkpoint_policy(module, x, memory_budget=0.5, times=times)
    assert torch.equal(random_state, torch.get_rng_state()) and x.grad is None
    assert versions == [p._version for p in module.parameters()]
    assert all(torch.equal(t, state[key]) for key, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    names = [str(op) for op in list_operators(module, x)]
    assert policy.names == [name for name in names if name != "aten.detach.default"]


def test_policies_pickle():
    module, x = network(), torch.randn(8, 32, requires_grad=True)
    policy = get_optimal_checkpoint_policy(module, x, memory_budget=0.3, times="estimate")
    again = pickle.loads(pickle.dumps(policy))
    assert again.kept == policy.kept and again.names == policy.names and str(again.report) == str(policy.report)
    wrapper = pickle.loads(pickle.dumps(selective_checkpoint_wrapper(network(), policy_fn=policy)))
    wrapper(x).sum().backward()


def test_estimates_are_the_same_on_every_run_and_use_no_memory():
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.GELU(), nn.Linear(64, 64))
    x = torch.randn(16, 64, requires_grad=True)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        first = get_optimal_checkpoint_policy(module, x, memory_budget=0.5, times="estimate")
    assert not any(e.cpu_memory_usage > 2048 for e in profile.key_averages())
    again = get_optimal_checkpoint_policy(module, x, memory_budget=0.5, times="estimate")
    assert [(r.seconds, r.bytes, r.kept) for r in first.report.rows] == [
        (r.seconds, r.bytes, r.kept) for r in again.report.rows
    ]


def test_bytes_are_exact():
    def function(x):
        y = x @ x  # 4 * 8 * 8
        z = y.view(-1)[3:].relu()  # 4 * 61
        a, b = z.double().chunk(2)  # 8 * 61
        return (a.sum() + b.sum()).sin()

    policy = get_optimal_checkpoint_policy(function, torch.randn(8, 8, requires_grad=True), memory_budget=1)
    sizes = {row.name: row.bytes for row in policy.report.rows}
    assert sizes["aten.mm.default"] == 4 * 64 and sizes["aten.relu.default"] == 4 * 61
    assert sizes["aten._to_copy.default"] == 8 * 61 and sizes["aten.view.default"] == 0


def test_report_and_curve(tmp_path):
    module, x = network(), torch.randn(8, 32, requires_grad=True)
    report = get_optimal_checkpoint_policy(module, x, memory_budget=0.5, times="estimate").report
    assert "aten.addmm.default" in str(report) and "kept:" in str(report)
    curve = report.curve(9)
    assert [b for b, _ in curve] == sorted(b for b, _ in curve)
    assert [s for _, s in curve] == sorted((s for _, s in curve), reverse=True)
    report.plot(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")


# ---- bad input ----
