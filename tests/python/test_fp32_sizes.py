"""fp32 attention of numbers of any size: rows far larger or far smaller than others, or than usual, stay accurate.

Errors are measured against fp64 in units of sum_j P_ij |V_jd|, and compared with those of the same formula in fp32, and
with what rounding a score, a sum of products q_d k_d, may make of its exponential.
"""

import pytest
import torch
from devices import DEVICES

import xformers.ops as xops

QUERIES, KEYS, HEADS = 150, 200, 2


def powers(low, high):
    """A power of two for each row."""
    return lambda x: x * torch.exp2(torch.randint(low, high + 1, (1, x.shape[1], x.shape[2], 1), device=x.device))


def times(factor):
    return lambda x: x * factor


def few_zeros(x):
    return x * (torch.rand(1, x.shape[1], x.shape[2], 1, device=x.device) > 0.3)


def from_row(row, value):
    def change(x):
        x[:, row:] = value
        return x

    return change


def same(x):
    return x


# What becomes of q, k and v, drawn from N(0, 1).
CASES = {
    "usual": (same, same, same),
    "tiny values": (same, same, times(1e-20)),
    "huge values": (same, same, times(1e20)),
    "values of all sizes": (same, same, powers(-60, 60)),
    "small keys and large queries": (times(1e12), times(1e-12), same),
    "large keys and small queries": (times(1e-15), times(1e15), same),
    "queries of all sizes": (powers(-60, 2), same, same),
    "keys of all sizes": (same, powers(-60, 2), same),
    "all of all sizes": (powers(-30, 1), powers(-30, 1), powers(-30, 30)),
    "zeros": (few_zeros, few_zeros, few_zeros),
    "nothing but zeros": (times(0), times(0), times(0)),
    "unseen rows are huge": (same, from_row(QUERIES, 1e15), from_row(QUERIES, 1e30)),
}


def by_formula(q, k, v, causal):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    probs = scores.softmax(-1)
    einsum = "bhqk,bkhd->bqhd"
    return torch.einsum(einsum, probs, v), torch.einsum(einsum, probs, v.abs()), scores.logsumexp(-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_any_size(name, head_dim, device):
    torch.manual_seed(len(name))
    shapes = [(1, n, HEADS, head_dim) for n in (QUERIES, KEYS, KEYS)]
    q, k, v = (change(torch.randn(s, device=device)) for change, s in zip(CASES[name], shapes, strict=True))
    causal = name.startswith("unseen")
    bias = xops.LowerTriangularMask() if causal else None
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v, attn_bias=bias)
    exact, unit, exact_lse = by_formula(q.double(), k.double(), v.double(), causal)
    plain, _, plain_lse = by_formula(q, k, v, causal)

    products = torch.einsum("bqhd,bkhd->bhqk", q.double().abs(), k.double().abs()) * head_dim**-0.5
    seen = products[..., :QUERIES] if causal else products
    rounding = 2**-21 + 2**-23 * seen.max().item()

    def error(x):
        return ((x - exact).abs() / unit.clamp_min(1e-37)).max().item()

    assert error(out) <= 2 * error(plain) + rounding
    assert (lse - exact_lse).abs().max() <= 2 * (plain_lse - exact_lse).abs().max() + rounding


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_nan_stays_in_its_rows_and_columns(head_dim, device):
    q, k, v = (torch.randn(1, n, 1, head_dim, device=device) for n in (QUERIES, KEYS, KEYS))
    q[0, 3, 0, 5] = float("nan")
    v[0, 7, 0, 9] = float("nan")
    out = xops.memory_efficient_attention_forward(q, k, v)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, 3] = expected[0, :, 0, 9] = True
    assert torch.equal(out.isnan(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_infinite_value_stays_in_its_column(head_dim, device):
    q, k, v = (torch.randn(1, n, 1, head_dim, device=device) for n in (QUERIES, KEYS, KEYS))
    v[0, 7, 0, 9] = 0
    expected = xops.memory_efficient_attention_forward(q, k, v)
    v[0, 7, 0, 9] = float("inf")
    out = xops.memory_efficient_attention_forward(q, k, v)
    assert not out[..., 9].isfinite().any()
    others = torch.arange(head_dim, device=device) != 9
    torch.testing.assert_close(out[..., others], expected[..., others], rtol=1e-6, atol=1e-7)


# What becomes of the gradient of out, and of q, k and v.
GRADIENTS = {
    "tiny": (times(1e-15), "usual"),
    "huge": (times(1e12), "usual"),
    "of all sizes": (powers(-40, 10), "usual"),
    "zeros in front": (lambda x: torch.cat([0 * x[:, :100], x[:, 100:] * 1e-9], 1), "usual"),
    "usual, of values of all sizes": (same, "values of all sizes"),
    "of all sizes, as all others": (powers(-20, 10), "all of all sizes"),
    "usual, where unseen rows are huge": (same, "unseen rows are huge"),
}


def gradient_units(q, k, v, dout, causal):
    """Sums of the magnitudes of which dq, dk and dv are sums."""
    scale = q.shape[-1] ** -0.5
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    probs = scores.softmax(-1)
    dprobs = torch.einsum("bqhd,bkhd->bhqk", dout.abs(), v.abs())
    dscores = probs * (dprobs + (probs * dprobs).sum(-1, keepdim=True)) * scale
    return (
        torch.einsum("bhqk,bkhd->bqhd", dscores, k.abs()),
        torch.einsum("bhqk,bqhd->bkhd", dscores, q.abs()),
        torch.einsum("bhqk,bqhd->bkhd", probs, dout.abs()),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_any_size(name, head_dim, device):
    torch.manual_seed(len(name))
    change_dout, case = GRADIENTS[name]
    shapes = [(1, n, HEADS, head_dim) for n in (QUERIES, KEYS, KEYS)]
    inputs = [change(torch.randn(s, device=device)) for change, s in zip(CASES[case], shapes, strict=True)]
    dout = change_dout(torch.randn(shapes[0], device=device))
    causal = case.startswith("unseen")
    bias = xops.LowerTriangularMask() if causal else None

    def gradients(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, dout.to(dtype))

    results = gradients(lambda q, k, v: xops.memory_efficient_attention(q, k, v, attn_bias=bias), torch.float32)
    plain = gradients(lambda q, k, v: by_formula(q, k, v, causal)[0], torch.float32)
    exact = gradients(lambda q, k, v: by_formula(q, k, v, causal)[0], torch.float64)
    q, k, v = (x.double() for x in inputs)
    products = torch.einsum("bqhd,bkhd->bhqk", q.abs(), k.abs()) * head_dim**-0.5
    rounding = 2**-21 + 2**-23 * (products[..., :QUERIES] if causal else products).max().item()
    for x, y, z, unit in zip(results, plain, exact, gradient_units(q, k, v, dout.double(), causal), strict=True):
        unit = unit.clamp_min(1e-30)
        assert ((x - z).abs() / unit).max() <= 2 * ((y - z).abs() / unit).max() + rounding
