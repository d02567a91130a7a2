"""Linear attention by its formula: every pair of tokens, in the dtype of its inputs."""

import torch


def features(x, omega, paired):
    if omega is None:
        return x
    x = x * x.shape[-1] ** -0.25
    projected = x @ omega.to(x.dtype)
    if paired:
        projected = torch.cat([projected, -projected], -1)
    return (projected - x.square().sum(-1, keepdim=True) / 2).exp() / projected.shape[-1] ** 0.5


def one_batch(q, k, v, log_decay, state, causal, normalize):
    """Features [batch, heads, seqlen, m], v [batch, heads, seqlen, head_dim_v], log_decay [batch, heads, seqlen]."""
    if normalize:
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    weights = q @ k.transpose(-1, -2)
    below = torch.ones(weights.shape[-2:], dtype=torch.bool).tril()
    since_start, to_end = 1.0, 1.0
    if log_decay is not None:
        # [i, j]: the sum over j < t <= i, of which no part is a difference.
        n, rows = torch.arange(weights.shape[-1]), [torch.zeros_like(log_decay, dtype=torch.float64)]
        for i, g in enumerate(log_decay.double().unbind(-1)):
            rows.append(torch.where(n < i, rows[-1] + g[..., None], 0.0))
        between = torch.stack(rows[1:], -2).to(q.dtype)
        weights = weights * between.exp()
        total = log_decay.cumsum(-1)
        since_start, to_end = total.exp()[..., None], between[..., -1, :].exp()[..., None]
    if causal:
        weights = weights.masked_fill(~below, 0)
    sums = weights @ v
    final = k.transpose(-1, -2) @ (v * to_end)
    if state is not None:
        state = state.to(q.dtype)
        sums = sums + since_start * (q @ state)
        final = final + state * (since_start[..., -1:, :] if log_decay is not None else 1.0)
    return (sums[..., :-1] / sums[..., -1:] if normalize else sums), final


def linear_attention(
    q, k, v, omega=None, log_decay=None, state=None, cu_seqlens=None, paired=False, causal=False, normalize=True
):
    """out [batch, seqlen, heads, head_dim_v] and the final state, of tensors laid out like out."""
    q, k = features(q, omega, paired), features(k, omega, paired)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    log_decay = None if log_decay is None else log_decay.to(q.dtype).transpose(1, 2)
    if cu_seqlens is None:
        out, final = one_batch(q, k, v, log_decay, state, causal, normalize)
        return out.transpose(1, 2), final
    outs, finals = [], []
    for s, (begin, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        part = [t[:, :, begin:end] for t in (q, k, v)]
        decay = None if log_decay is None else log_decay[:, :, begin:end]
        before = None if state is None else state[s : s + 1]
        if begin == end:
            finals.append(before)
            continue
        out, final = one_batch(*part, decay, before, causal, normalize)
        outs.append(out)
        finals.append(final)
    return torch.cat(outs, 2).transpose(1, 2), torch.cat(finals)
