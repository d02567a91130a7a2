"""Reversible stacks against the stored form: values, gradients, dropout, arguments, memory."""

import copy
import pickle

import pytest
import torch
from blocks_reference import random
from devices import on_each_device  # noqa: F401
from xformers.components.feedforward import MLP
from xformers.components.reversible import ReversibleBlock, ReversibleSequence


class Shifted(torch.nn.Module):
    """A layer with an argument."""

    def __init__(self, dim, p=0.0):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.Linear(dim, dim), torch.nn.Dropout(p))

    def forward(self, x, shift=None):
        out = self.net(x).tanh()
        return out if shift is None else out + shift


def stack(layers, dim, p=0.0, dtype=torch.float64, split_dim=-1):
    torch.manual_seed(0)
    return ReversibleSequence([(Shifted(dim, p), Shifted(dim, p)) for _ in range(layers)], split_dim).to(dtype)


def stored(sequence, x, **kwargs):
    """The same from the definition, kept by autograd."""
    for block in sequence.blocks:
        x1, x2 = x.chunk(2, block.split_dim)
        y1 = x1 + block.f.net(x2, **kwargs)
        x = torch.cat([y1, x2 + block.g.net(y1)], block.split_dim)
    return x


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("layers", [1, 24])
def test_gradients_are_those_of_the_stored_form(layers, p):
    """Within 1e-10 in fp64; dropout repeats in backward."""
    sequence, shift = stack(layers, 8, p), random((2, 5, 8), torch.float64, 3, True)
    x = random((2, 5, 16), torch.float64, 1, True)
    grad = random(x.shape, torch.float64, 2)
    results = []
    for run in (lambda: sequence(x, shift=shift), lambda: stored(sequence, x, shift=shift)):
        torch.manual_seed(4)
        out = run()
        after = torch.rand(3)
        torch.manual_seed(9)  # backward may not depend on the state that it finds, nor change it
        before = torch.get_rng_state()
        results.append([out, after, *torch.autograd.grad(out, [x, shift, *sequence.parameters()], grad)])
        assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max().item() <= 1e-10


def test_two_calls_before_their_backward():
    sequence, x = stack(3, 4, 0.5), random((2, 8), torch.float64, 0, True)
    torch.manual_seed(1)
    one, two = sequence(x), sequence(x)
    both = torch.autograd.grad(one.sum() + 2 * two.sum(), x)[0]
    torch.manual_seed(1)
    plain = stored(sequence, x).sum() + 2 * stored(sequence, x).sum()
    assert torch.allclose(both, torch.autograd.grad(plain, x)[0], atol=1e-10)


@pytest.mark.parametrize("route", [(True, False), (False, True), (True, True), (False, False)])
def test_argument_route(route):
    sequence, shift = stack(2, 4), random((3, 4), torch.float64, 3, True)
    x = random((3, 8), torch.float64, 1, True)

    def plain(x):
        for block in sequence.blocks:
            x1, x2 = x.chunk(2, -1)
            y1 = x1 + block.f.net(x2, shift if route[0] else None)
            x = torch.cat([y1, x2 + block.g.net(y1, shift if route[1] else None)], -1)
        return x

    out, expected = sequence(x, arg_route=route, shift=shift), plain(x)
    assert torch.allclose(out, expected)
    if any(route):
        for one, other in zip(*(torch.autograd.grad(y.sum(), [x, shift]) for y in (out, expected)), strict=True):
            assert torch.allclose(one, other, atol=1e-10)


def test_split_dim():
    sequence = ReversibleSequence([(torch.nn.Linear(6, 6), torch.nn.Tanh())], split_dim=1).double()
    x = random((2, 4, 6), torch.float64, 0, True)
    out, expected = sequence(x), stored(sequence, x)
    assert torch.allclose(out, expected)
    for one, other in zip(*(torch.autograd.grad(y.sum(), x) for y in (out, expected)), strict=True):
        assert torch.allclose(one, other)
    with pytest.raises(ValueError, match=r"x is \[2, 3, 6\], expected an even size along dimension 1"):
        sequence(x[:, :3])


def test_nothing_is_kept_but_the_output():
    """Activations of 24 layers take at most 1.2 times those of 6."""

    def kept(layers):
        sizes = []
        sequence = stack(layers, 64, dtype=torch.float32)
        ours = {p.data_ptr() for p in sequence.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(0 if t.data_ptr() in ours else t.numel()) or t, lambda t: t
        ):
            sequence(torch.randn(8, 128, requires_grad=True))
        return sum(sizes)

    assert kept(24) <= 1.2 * kept(6) and kept(24) == 8 * 128


def test_autocast(device):
    sequence = ReversibleSequence([(MLP(16, 0.0, "gelu", 2), MLP(16, 0.0, "gelu", 2)) for _ in range(2)])
    x = random((3, 32), requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        out, expected = sequence(x), stored(sequence, x)
    assert torch.equal(out, expected)
    gradients = [torch.autograd.grad(y.sum(), [x, *sequence.parameters()]) for y in (out, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=0.1, atol=0.05)


def test_parameters_train_without_a_gradient_of_x():
    sequence, x = stack(2, 4), random((3, 8), torch.float64)
    sequence(x).sum().backward()
    assert all(p.grad is not None for p in sequence.parameters())
    with torch.no_grad():
        assert torch.equal(sequence(x), stored(sequence, x))


def test_names_and_copies():
    sequence = stack(2, 4)
    assert all(
        name.startswith("blocks.") and name.split(".")[2:4] in (["f", "net"], ["g", "net"])
        for name in sequence.state_dict()
    )
    x = random((3, 8), torch.float64, 0, True)
    sequence(x).sum().backward()  # after a call, too
    for other in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert torch.equal(other(x), sequence(x))
    assert isinstance(sequence.blocks[0], ReversibleBlock)


def test_trained_beside_plain():
    """The same losses, step by step."""
    losses = []
    for run in (lambda s, x: s(x), stored):
        sequence = stack(3, 8, 0.1)
        optimizer = torch.optim.SGD(sequence.parameters(), lr=0.1)
        torch.manual_seed(1)
        x, target = torch.randn(16, 16, dtype=torch.float64), torch.randn(16, 16, dtype=torch.float64)
        losses.append([])
        for _ in range(20):
            loss = (run(sequence, x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9) and losses[0][-1] < losses[0][0]
