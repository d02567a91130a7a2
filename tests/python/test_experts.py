"""Mixture of experts against the one-hot formula of GShard, written with its T x E x C tensors, in fp64."""

import copy
import math

import pytest
import torch
from blocks_reference import assert_close, random, wide
from xformers.components.feedforward import MixtureOfExperts
from xformers.components.feedforward.mixture_of_experts import TopKGate

from xformers.ops import SwiGLU

functional = torch.nn.functional


def one_hot_top_2(logits, noise, capacity):
    """combine [T, E, C], dispatch, auxiliary loss: arXiv:2006.16668, algorithm 1."""
    tokens, experts = logits.shape
    gates = torch.softmax(logits.double(), 1)
    first = gates.argmax(1)
    mask1 = functional.one_hot(first, experts)
    left = (logits.double() + noise.double()).masked_fill(mask1.bool(), -math.inf)
    mask2 = functional.one_hot(left.argmax(1), experts)
    place1 = (torch.cumsum(mask1, 0) - 1) * mask1
    place2 = (torch.cumsum(mask2, 0) - 1 + mask1.sum(0, keepdim=True)) * mask2
    aux = (gates.mean(0) * mask1.double().mean(0)).mean()
    mask1, mask2 = mask1 * (place1 < capacity), mask2 * (place2 < capacity)
    gate1, gate2 = (gates * mask1).sum(1), (gates * mask2).sum(1)
    total = (gate1 + gate2).clamp(min=torch.finfo(torch.float32).eps)
    combine = torch.zeros(tokens, experts, capacity, dtype=torch.float64)
    for gate, mask, place in ((gate1, mask1, place1), (gate2, mask2, place2)):
        where = functional.one_hot((place * mask).sum(1).clamp(max=capacity - 1), capacity).double()
        combine = combine + (gate / total)[:, None, None] * mask[:, :, None] * where[:, None, :]
    return combine, aux


def expert_of(layer, expert, x):
    """In fp64."""
    module = layer.moe.experts[expert]
    w1, b1, w2, b2 = (
        wide(p) for p in (module.mlp[0].weight, module.mlp[0].bias, module.mlp[3].weight, module.mlp[3].bias)
    )
    return functional.linear(torch.relu(functional.linear(x, w1, b1)), w2, b2)


def gumbel_like(logits):
    """What the gate draws first after a seed."""
    return torch.empty_like(logits, dtype=torch.float32).exponential_().log_().neg_()


@pytest.mark.parametrize("capacity_factor", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("tokens, experts", [(24, 4), (23, 5), (8, 8), (3, 4)])
def test_top_2_is_the_one_hot_formula(tokens, experts, capacity_factor):
    """0.0.9: values and dropped tokens."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(
        16, 0.0, "relu", experts, "top_2", hidden_layer_multiplier=2, capacity_factor=capacity_factor
    )
    with torch.no_grad():  # far apart, so that some experts overflow
        layer.gate.wg.weight.mul_(4)
    x = random((1, tokens, 16), requires_grad=True)
    capacity = int(capacity_factor * 2 * tokens / experts)
    flat, wg = wide(x)[0], wide(layer.gate.wg.weight)
    torch.manual_seed(7)
    noise = gumbel_like(functional.linear(x[0], layer.gate.wg.weight))
    combine, aux = one_hot_top_2(flat @ wg.T, noise, max(capacity, 1))
    if capacity == 0:
        combine = combine * 0
    outs = torch.stack([expert_of(layer, e, flat) for e in range(experts)], 1)  # [T, E, dim]
    expected = torch.einsum("tec,ted->td", combine, outs)
    torch.manual_seed(7)
    out = layer(x)
    assert_close(out[0], expected, scale=10.0)
    assert_close(layer.moe.l_aux, aux, scale=1.0)
    if capacity_factor == 0.5:
        dropped = combine.sum((1, 2)) == 0
        assert bool(dropped.any()) and bool((out[0, dropped] == 0).all())
    # Gradients of x, through experts, weights and the auxiliary loss.
    grad = random(out.shape, seed=1)
    (result, dwg) = torch.autograd.grad((out * grad).sum() + layer.moe.l_aux, [x, layer.gate.wg.weight])
    flat2 = flat.detach().requires_grad_()
    wg2 = wg.detach().requires_grad_()
    combine, aux = one_hot_top_2(flat2 @ wg2.T, noise, max(capacity, 1))
    outs = torch.stack([expert_of(layer, e, flat2) for e in range(experts)], 1)
    loss = (torch.einsum("tec,ted->td", combine * (capacity > 0), outs) * grad[0].double()).sum() + aux
    dx, dw = torch.autograd.grad(loss, [flat2, wg2])
    assert_close(result[0], dx, scale=100.0)
    assert_close(dwg, dw, scale=100.0)


def test_nothing_is_dropped_without_a_capacity():
    layer = MixtureOfExperts(8, 0.0, "relu", 4, "top_2", capacity_factor=None)
    with torch.no_grad():
        layer.gate.wg.weight[0] += 5  # nearly all to one
    x = random((3, 7, 8)).abs()
    torch.manual_seed(3)
    out = layer(x)
    flat = x.transpose(0, 1).reshape(-1, 8)  # tokens are counted sequence first
    torch.manual_seed(3)
    combine, _ = one_hot_top_2(
        wide(flat) @ wide(layer.gate.wg.weight).T, gumbel_like(flat @ layer.gate.wg.weight.T), 42
    )
    outs = torch.stack([expert_of(layer, e, wide(flat)) for e in range(4)], 1)
    expected = torch.einsum("tec,ted->td", combine, outs).view(7, 3, 8).transpose(0, 1)
    assert_close(out, expected, scale=10.0)


@pytest.mark.parametrize("tokens", [8, 10, 3])
def test_round_robin_runs_each_expert_on_its_tokens(tokens):
    """0.0.9."""
    layer, x = MixtureOfExperts(8, 0.0, "relu", 4, "round_robin"), random((1, tokens, 8))
    out = layer(x)
    for t in range(tokens):
        assert_close(out[0, t], expert_of(layer, t % 4, wide(x)[0, t]), scale=10.0)


def test_experts_without_tokens_and_all_tokens_to_one():
    layer = MixtureOfExperts(8, 0.0, "relu", 4, "top_2", top_k=1, capacity_factor=None)
    with torch.no_grad():
        layer.gate.wg.weight.zero_()
        layer.gate.wg.weight[2] = 10.0
    x = random((1, 6, 8)).abs()
    out = layer(x)
    gates = torch.softmax(wide(x)[0] @ wide(layer.gate.wg.weight).T, 1)
    assert_close(out[0], expert_of(layer, 2, wide(x)[0]) * gates[:, 2:3], scale=10.0)
    out.sum().backward()
    for e, expert in enumerate(layer.moe.experts):
        assert all(bool(p.grad.any()) == (e == 2) for p in expert.parameters())


def test_no_tokens_at_all():
    layer = MixtureOfExperts(8, 0.0, "relu", 4, "top_2")
    assert layer(torch.zeros(0, 5, 8)).shape == (0, 5, 8)


def test_nan_stays_with_its_token():
    layer = MixtureOfExperts(8, 0.0, "relu", 4, "round_robin")
    x = random((1, 9, 8))
    x[0, 4] = math.nan
    assert layer(x).isnan().any(-1).nonzero()[:, 1].tolist() == [4]


def test_places_are_those_of_the_formula():
    choices = torch.tensor([[0, 1], [0, 2], [0, 1], [2, 0]])
    tokens, slots, counts, kept = torch.ops.xformers.expert_places(choices, 3, 2)
    # Expert 0: tokens 0, 1 (2 and the second choice of 3 are over); 1: second choices of 0, 2; 2: 3, then 1's.
    assert counts.tolist() == [2, 2, 2]
    assert tokens.tolist()[:6] == [0, 1, 0, 2, 3, 1] and sorted(tokens.tolist()[6:]) == [2, 3]
    assert slots[:2].tolist() == [[0, 2], [1, 5]] and slots[2, 1].item() == 3 and slots[3, 0].item() == 4
    assert kept.tolist() == [[True, True], [True, True], [False, True], [True, False]]


def test_gradcheck():
    tokens, slots, counts, _ = torch.ops.xformers.expert_places(torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2]]), 3, 3)
    ops = torch.ops.xformers
    x, weights = random((4, 3), torch.float64, 0, True), random((4, 2), torch.float64, 1, True)
    assert torch.autograd.gradcheck(lambda x: ops.experts_gather(x, tokens, slots), x)
    y = random((8, 3), torch.float64, 2, True)
    assert torch.autograd.gradcheck(lambda y, w: ops.experts_combine(y, tokens, slots, w), (y, weights))
    assert torch.autograd.gradcheck(lambda y: ops.experts_combine(y, tokens, slots), (y,))
    shapes = [(5, 3)] * 3 + [(5,)] * 3 + [(2, 5)] * 3 + [(2,)] * 3
    parameters = [random(s, torch.float64, i, True) for i, s in enumerate(shapes)]

    def layer(y, *p):
        torch.manual_seed(1)
        return ops.experts_mlp(y, counts, p[:3], p[3:6], p[6:9], p[9:], "gelu", 0.2)

    assert torch.autograd.gradcheck(layer, (y, *parameters))
    logits = random((6, 4), torch.float64, 5, True)
    noise = random((6, 4), torch.float64, 6)
    assert torch.autograd.gradcheck(lambda z: ops.route_top_k(z, 2, 2, noise)[1:3], logits)


def test_same_bits_every_run():
    layer, x = MixtureOfExperts(32, 0.1, "gelu", 8, "top_2"), random((4, 64, 32), requires_grad=True)

    def run():
        torch.manual_seed(2)
        out = layer(x)
        return [out, *torch.autograd.grad(out.square().sum() + layer.moe.l_aux, [x, *layer.parameters()])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer, x = MixtureOfExperts(32, 0.0, "relu", 4, "round_robin"), random((2, 10, 32), requires_grad=True)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        out = layer(x)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() <= 16 * torch.finfo(dtype).eps * expected.abs().max()
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_compile_fullgraph():
    layer, x = MixtureOfExperts(16, 0.0, "relu", 4, "top_2"), random((2, 12, 16), requires_grad=True)
    layer.gate.k = 1  # without noise, which compiled code draws in an order of its own
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), layer(x)
    assert torch.allclose(out, expected, atol=1e-6)
    for one, other in zip(
        *(torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]) for y in (out, expected)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_modules_of_the_user_s():
    class Gate(torch.nn.Module):
        """Everything to expert 1, but token 2 to both and token 3 to none."""

        def forward(self, x):
            tokens = x.shape[0]
            dispatch = torch.zeros(tokens, 2, tokens, dtype=torch.bool)
            for t in range(tokens):
                dispatch[t, 1, t] = t != 3
            dispatch[2, 0, 0] = True
            return x.new_tensor(0.5), dispatch * 0.25, dispatch

    experts = iter([torch.nn.Linear(8, 8), SwiGLU(8, 12)])
    layer = MixtureOfExperts(8, 0.0, "relu", 2, Gate(), expert_constructor=lambda: next(experts))
    x = random((1, 5, 8), requires_grad=True)
    out = layer(x)
    first, second = layer.moe.experts
    expected = 0.25 * second(x)
    expected[:, 2] += 0.25 * first(x[:, 2])
    expected[:, 3] = 0
    assert torch.allclose(out, expected, atol=1e-6) and layer.moe.l_aux.item() == 0.5
    out.sum().backward()
    assert bool(x.grad[0, 3].eq(0).all())
    swiglus = MixtureOfExperts(8, 0.0, None, 4, "top_2", expert_constructor=lambda: SwiGLU(8, 12), capacity_factor=None)
    assert swiglus(x).shape == x.shape


def test_parameters():
    layer = MixtureOfExperts(8, 0.0, "relu", 3, "top_2")
    names = list(layer.state_dict())
    assert names[:2] == ["gate.wg.weight", "moe.gate.wg.weight"] and names[2] == "moe.experts.0.mlp.0.weight"
    assert layer.gate is layer.moe.gate
    layer(random((1, 6, 8)))
    for module in (layer, copy.deepcopy(layer)):  # after a call, too
        assert all(p.expert for p in module.moe.experts.parameters())
        assert not hasattr(module.gate.wg.weight, "expert")


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(gate="top_3"), ValueError, "gate is 'top_3', expected 'round_robin', 'top_2' or a module"),
        (dict(number_of_local_experts=5), AssertionError, "number_of_local_experts is 5, expected at most 4"),
        (dict(number_of_local_experts=2), ValueError, "process group is missing"),
        (dict(gate="top_2", top_k=5), ValueError, "top_k is 5, expected 1 to 4"),
        (dict(gate="top_2", capacity_factor=0.0), ValueError, "capacity_factor is 0.0"),
    ],
    ids=["gate", "local", "group", "top_k", "capacity"],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        MixtureOfExperts(8, 0.0, "relu", 4, **{"gate": "top_2", **options})
    assert TopKGate(8, 4).k == 2
