"""Attention by the formula, with the score matrix in memory, in any dtype, gradients included.

In fp64 it is the truth that the tests measure against; in the inputs' own dtype it is the plain implementation whose
error sets the budget. It shares no code with the library.
"""

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


def attention(query, key, value, bias, scale, kept, p, grad_out, grad_lse, dtype):
    """All results by the formula, as a dict: out, lse, query, key, value, bias (the last four are gradients).

    All in [batch, heads, ...]. kept: booleans [batch, heads, seqlen_q, seqlen_k], with dropout probability p.
    """
    q, k, v, go = (to_bhmk(x.detach()).to(dtype) for x in (query, key, value, grad_out))
    scores = scale * (q @ k.transpose(-1, -2)) + to_scores(bias, dtype)
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # rows that see no key; all of them where there is none
    lse = scores.masked_fill(blind, 0.0).logsumexp(-1, keepdim=True).masked_fill(blind, -torch.inf)
    weights = (scores - lse).exp().masked_fill(blind, 0.0)
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


def rounding_scales(query, key, value, bias, scale, kept, p, grad_out, grad_lse, amplified):
    """How much roundings of relative size 1 can change each result: the formula over absolute values.

    amplified: roundings of scores and lse, whose effect on a weight grows with their size; else those of the weights.
    """
    q, k, v, go = (to_bhmk(x.detach()).double().abs() for x in (query, key, value, grad_out))
    scores_bias = to_scores(bias, torch.float64)
    exact = attention(query, key, value, bias, scale, kept, p, grad_out, grad_lse, torch.float64)
    lse = exact["lse"][..., None]
    scores = scale * (to_bhmk(query.detach()).double() @ to_bhmk(key.detach()).double().transpose(-1, -2)) + scores_bias
    weights = (scores - lse).exp().masked_fill(lse == -torch.inf, 0.0)
    size = abs(scale) * (q @ k.transpose(-1, -2)) + scores_bias.abs()
    size = size.where(size.isfinite(), torch.zeros_like(size))
    factor = torch.ones_like(lse)
    if amplified and size.shape[-1]:
        factor += size.amax(-1, keepdim=True) + lse.abs().where(lse.isfinite(), torch.zeros_like(lse))
    drop = torch.ones(()).double() if kept is None else kept.double() / (1 - p)
    delta = (go * exact["out"].abs()).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta + to_bhm(grad_lse).double().abs()[..., None]
    ds = factor * weights * (drop * (go @ v.transpose(-1, -2)) + delta)
    return {
        "out": factor * ((weights * drop) @ v),
        "lse": factor[..., 0],
        "query": abs(scale) * (ds @ k),
        "key": abs(scale) * (ds.transpose(-1, -2) @ q),
        "value": (factor * weights * drop).transpose(-1, -2) @ go,
        "bias": ds,
    }


NEIGHBOURS = 256  # elements that share one budget, as in tests/kernels/attention_check.cpp
RATIOS = {}  # (family, quantity) -> largest error / budget so far


def largest_nearby(x):
    """The largest of the neighbours, for every element."""
    count = x.numel()
    parts = max(1, count // NEIGHBOURS)
    ends = torch.arange(1, parts + 1, device=x.device) * count // parts
    part = torch.searchsorted(ends, torch.arange(count, device=x.device), right=True)
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
    excess = torch.where(finite, error - budget, -torch.inf)
    ratio = (error / budget.clamp_min(1e-300)).max().item()
    key = family, name.removeprefix("gradient of ")
    RATIOS[key] = max(RATIOS.get(key, 0.0), ratio)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    assert excess.max() <= 0, (
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
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype).masked_fill(x == -torch.inf, 0.0)
        for x in outputs
    ]
    grads = torch.autograd.grad(outputs, list(leaves.values()), incoming) if leaves else ()

    dtype = query.dtype
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grad_lse = incoming[1] if len(incoming) == 2 else None
    problem = (query, key, value, bias if tensor_bias is None else tensor_bias, scale, kept, p, incoming[0], grad_lse)
    truth, plain = attention(*problem, torch.float64), attention(*problem, dtype)
    stored, computed = rounding_scales(*problem, amplified=False), rounding_scales(*problem, amplified=True)
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if compute_dtype != dtype:  # an lse is fp32 even then
        plain["lse"] = attention(*problem, compute_dtype)["lse"]

    got = {"out": to_bhmk(outputs[0])}
    if len(outputs) == 2:
        got["lse"] = to_bhm(outputs[1])
    for (name, leaf), grad in zip(leaves.items(), grads, strict=False):
        assert grad.shape == leaf.shape, f"gradient of {name} has shape {list(grad.shape)}, expected {list(leaf.shape)}"
        is_bias = name == "bias"
        got[name] = (
            (grad.flatten(1, 2) if grad.ndim == 5 else grad.view(truth["bias"].shape)) if is_bias else to_bhmk(grad)
        )
    family = f"{got['out'].device.type}/{str(dtype).removeprefix('torch.')}"
    for name, x in got.items():
        ulp = 0 if name == "lse" else ULP[dtype]
        roundings = 2 * ulp * stored[name] + 4 * ULP[compute_dtype] * computed[name]
        assert_close(
            name if name in ("out", "lse") else f"gradient of {name}", x, truth[name], plain[name], roundings, family
        )
