"""Attention by the formula, with the score matrix in memory, in any dtype, gradients included.

In fp64 it is the truth that the tests measure against; in the inputs' own dtype it is the plain implementation whose
error sets the budget. It shares no code with the library.
"""

import functools

import torch

# Unit in the last place at 1.
ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def to_bhmk(x: torch.Tensor) -> torch.Tensor:
    """Any layout -> [batch, heads, seqlen, head_dim]; groups count as heads."""
    if x.ndim == 3:
        x = x[:, :, None]
    return x.flatten(2, 3).transpose(1, 2) if x.ndim == 5 else x.transpose(1, 2)


def to_bhm(x: torch.Tensor) -> torch.Tensor:
    """lse of any layout -> [batch, heads, seqlen_q]."""
    return x.flatten(1, 2) if x.ndim == 4 else x


def to_scores(bias, dtype) -> torch.Tensor:
    """A bias of any layout, or a boolean mask, as what is added to [batch, heads, seqlen_q, seqlen_k]."""
    if bias is None:
        return torch.zeros((), dtype=dtype)
    if bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=dtype).masked_fill(~bias, -torch.inf)
    bias = bias.flatten(1, 2) if bias.ndim == 5 else bias[:, None] if bias.ndim == 3 else bias
    return bias.detach().to(dtype)


def softmax_scores(query, key, bias, scale, dtype):
    """(weights [batch, heads, seqlen_q, seqlen_k], lse [batch, heads, seqlen_q, 1]) of the formula."""
    q, k = (to_bhmk(x.detach()).to(dtype) for x in (query, key))
    scores = scale * (q @ k.transpose(-1, -2)) + to_scores(bias, dtype)
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # rows that see no key; all of them where there is none
    lse = scores.masked_fill(blind, 0.0).logsumexp(-1, keepdim=True).masked_fill(blind, -torch.inf)
    return (scores - lse).exp().masked_fill(blind, 0.0), lse


def attention(query, key, value, bias, scale, kept, p, grad_out, grad_lse, dtype):
    """All results by the formula, as a dict: out, lse, query, key, value, bias (the last four are gradients).

    All in [batch, heads, ...]. kept: booleans [batch, heads, seqlen_q, seqlen_k], with dropout probability p.
    """
    q, k, v, go = (to_bhmk(x.detach()).to(dtype) for x in (query, key, value, grad_out))
    weights, lse = softmax_scores(query, key, bias, scale, dtype)
    drop = torch.ones((), dtype=dtype) if kept is None else kept.to(dtype) / (1 - p)
    out = (weights * drop) @ v
    delta = (go * out).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - to_bhm(grad_lse).to(dtype)[..., None]
    ds = weights * (drop * (go @ v.transpose(-1, -2)) - delta)
    return {
        "out": out,
        "lse": lse[..., 0],
        "query": scale * (ds @ k),
        "key": scale * (ds.transpose(-1, -2) @ q),
        "value": (weights * drop).transpose(-1, -2) @ go,
        "bias": ds,
    }


def rounding_scales(exact, query, key, value, bias, scale, kept, p, grad_out, grad_lse):
    """How much roundings of relative size 1 can change each result: the formula over absolute values.

    Two tables: of the weights, and of scores and lse, whose effect on a weight grows with their size. exact: the
    results in fp64.
    """
    q, k, v, go = (to_bhmk(x.detach()).double().abs() for x in (query, key, value, grad_out))
    scores_bias = to_scores(bias, torch.float64)
    lse = exact["lse"][..., None]
    scores = scale * (to_bhmk(query.detach()).double() @ to_bhmk(key.detach()).double().transpose(-1, -2)) + scores_bias
    weights = (scores - lse).exp().masked_fill(lse == -torch.inf, 0.0)
    size = abs(scale) * (q @ k.transpose(-1, -2)) + scores_bias.abs()
    size = size.where(size.isfinite(), torch.zeros_like(size))
    amplified = torch.ones_like(lse)
    if size.shape[-1]:
        amplified += size.amax(-1, keepdim=True) + lse.abs().where(lse.isfinite(), torch.zeros_like(lse))
    drop = torch.ones(()).double() if kept is None else kept.double() / (1 - p)
    delta = (go * exact["out"].abs()).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta + to_bhm(grad_lse).double().abs()[..., None]
    dropped = weights * drop
    out, ds = dropped @ v, weights * (drop * (go @ v.transpose(-1, -2)) + delta)
    dq = abs(scale) * (ds @ k)
    return [
        {
            "out": factor * out,
            "lse": factor[..., 0],
            "query": factor * dq,
            "key": abs(scale) * ((factor * ds).transpose(-1, -2) @ q),
            "value": (factor * dropped).transpose(-1, -2) @ go,
            "bias": factor * ds,
        }
        for factor in (torch.ones_like(lse), amplified)
    ]


def answers(query, key, value, bias, scale, kept, p, grad_out, grad_lse):
    """(formula in fp64, formula in the inputs' dtype, allowance for roundings) by name of result."""
    problem, dtype = (query, key, value, bias, scale, kept, p, grad_out, grad_lse), query.dtype
    exact = attention(*problem, torch.float64)
    plain = dict(exact) if dtype == torch.float64 else attention(*problem, dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if compute != dtype:  # an lse is fp32 even then
        plain["lse"] = softmax_scores(query, key, bias, scale, compute)[1][..., 0]
    stored, computed = rounding_scales(exact, *problem)
    roundings = {
        name: (0 if name == "lse" else 2 * ULP[dtype]) * stored[name] + 4 * ULP[compute] * computed[name]
        for name in exact
    }
    return exact, plain, roundings


NEIGHBOURS = 256  # elements that share one budget, as in tests/kernels/attention_check.cpp
RATIOS = {}  # (family, quantity) -> largest error / budget so far


@functools.lru_cache(64)
def neighbourhoods(count, device):
    """(how many there are, the one of each of `count` elements)."""
    parts = max(1, count // NEIGHBOURS)
    ends = torch.arange(1, parts + 1, device=device) * count // parts
    return parts, torch.searchsorted(ends, torch.arange(count, device=device), right=True)


def largest_nearby(x):
    """The largest of the neighbours, for every element."""
    parts, part = neighbourhoods(x.numel(), x.device)
    most = torch.zeros(parts, dtype=x.dtype, device=x.device).scatter_reduce(0, part, x.flatten(), "amax")
    return most[part].reshape(x.shape)


def assert_close(name, got, truth, plain, roundings, family):
    """|got - truth| <= 2 |plain - truth| + roundings, the largest nearby; infinities in the same places, NaN nowhere.

    The largest error / budget of a family of cases goes into the report.
    """
    assert got.shape == truth.shape, f"{name} has shape {list(got.shape)}, expected {list(truth.shape)}"
    got, plain = got.detach().double(), plain.double()
    finite = truth.isfinite()
    assert torch.equal(got[~finite], truth[~finite]), f"{name}: infinities differ"
    assert got[finite].isfinite().all(), f"{name} has NaN or infinities where there should be none"
    if not finite.any():
        return
    error = (got - truth).abs().where(finite, torch.zeros_like(got))
    plain_error = (plain - truth).abs().where(finite & plain.isfinite(), torch.zeros_like(got))
    budget = 2 * largest_nearby(plain_error) + largest_nearby(torch.broadcast_to(roundings, got.shape))
    ratio = (error / budget.clamp_min(1e-300)).max().item()
    key = family, name.removeprefix("gradient of ")
    RATIOS[key] = max(RATIOS.get(key, 0.0), ratio)
    if ((error <= budget) | ~finite).all():
        return
    excess = torch.where(finite, error - budget, -torch.inf)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{name}{list(worst)}: got {got[worst]:.9g}, expected {truth[worst]:.9g}: "
        f"error {error[worst]:.3g} over budget {budget[worst]:.3g}"
    )


def check_attention(fn, query, key, value, bias=None, tensor_bias=None, scale=None, kept=None, p=0.0):
    """Runs fn(query, key, value, tensor_bias) forward and backward and compares all results with the formula.

    fn returns out, or (out, lse), whose gradient is then tested too. bias: what the formula adds; tensor_bias: a bias
    that fn takes as an argument (instead of `bias`), differentiated if it requires grad.
    """
    inputs = {"query": query, "key": key, "value": value, "bias": tensor_bias}
    leaves = {name: x for name, x in inputs.items() if x is not None and x.requires_grad}
    result = fn(query, key, value, tensor_bias)
    outputs = list(result) if isinstance(result, tuple) else [result]
    generator = torch.Generator().manual_seed(1)
    # No gradient comes in for the lse of a row that sees no key.
    incoming = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu")
        .to(x)
        .masked_fill(x == -torch.inf, 0.0)
        for x in outputs
    ]
    grads = torch.autograd.grad(outputs, list(leaves.values()), incoming) if leaves else ()

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grad_lse = incoming[1] if len(incoming) == 2 else None
    problem = (query, key, value, bias if tensor_bias is None else tensor_bias, scale, kept, p, incoming[0], grad_lse)
    truth, plain, roundings = answers(*problem)

    got = {"out": to_bhmk(outputs[0])}
    if len(outputs) == 2:
        got["lse"] = to_bhm(outputs[1])
    for (name, leaf), grad in zip(leaves.items(), grads, strict=False):
        assert grad.shape == leaf.shape, f"gradient of {name} has shape {list(grad.shape)}, expected {list(leaf.shape)}"
        is_bias = name == "bias"
        got[name] = (
            (grad.flatten(1, 2) if grad.ndim == 5 else grad.view(truth["bias"].shape)) if is_bias else to_bhmk(grad)
        )
    family = f"{got['out'].device.type}/{str(query.dtype).removeprefix('torch.')}"
    for name, x in got.items():
        label = name if name in ("out", "lse") else f"gradient of {name}"
        assert_close(label, x, truth[name], plain[name], roundings[name], family)


def assert_equal(got, want):
    """The same bits; on a GPU, where sums of gradients have no fixed order, up to their roundings."""
    for a, b in zip(got, want, strict=True):
        tolerance = 0 if a.is_cpu else 64 * torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
