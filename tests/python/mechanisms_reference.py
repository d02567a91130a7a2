"""The attention mechanisms as formulas, written from their papers and definitions; slow, and without any code of the
library. q, k, v are [N, seqlen, head_dim], heads folded into N. They run on the device of what they are given."""

import itertools
import math

import torch
import torch.nn.functional as F


def softmax_attention(q, k, v, keep=None, added=None):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if added is not None:
        scores = scores + added
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    weights = scores.softmax(-1)
    return torch.where(weights.isnan(), 0.0, weights) @ v


def triangle(nq, nk, device="cpu"):
    return torch.ones(nq, nk, dtype=torch.bool, device=device).tril()


def scaled_dot_product(q, k, v, keep=None, added=None, causal=False):
    if causal:
        band = triangle(q.shape[1], k.shape[1], q.device)
        keep = band if keep is None else keep & band
    return softmax_attention(q, k, v, keep, added)


def local(q, k, v, window, causal=False, keep=None):
    places = torch.arange(q.shape[1], device=q.device)
    back = places[:, None] - places
    near = (back >= 0) & (back <= window) if causal else back.abs() <= window // 2
    return softmax_attention(q, k, v, near if keep is None else near & keep)


def global_pattern(flags, causal=False):
    flags = flags.cpu()
    seen = flags[:, None] | flags
    return seen & triangle(*seen.shape) if causal else seen


def under_pattern(q, k, v, pattern, keep=None):
    """Followed by zeros up to the pattern's length, which are keys; `keep` of the sequence alone."""
    seqlen, missing = q.shape[1], pattern.shape[0] - q.shape[1]
    q, k, v = (F.pad(t, (0, 0, 0, missing)) for t in (q, k, v))
    if keep is not None:
        rows = missing if keep.shape[-2] > 1 else 0
        pattern = pattern & F.pad(keep, (0, missing, 0, rows), value=True)
    return softmax_attention(q, k, v, pattern)[:, :seqlen]


def linformer(q, k, v, e, f):
    seqlen = k.shape[1]
    return softmax_attention(q, e[:, :seqlen] @ k, f[:, :seqlen] @ v)


def segments(seqlen, count):
    """Slices: the first ones of seqlen // count tokens, the last ones one longer."""
    length, longer = divmod(seqlen, count)
    sizes = [length] * (count - longer) + [length + 1] * longer
    ends = itertools.accumulate(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def razavi(a, steps, over_the_batch=False):
    sums = a.sum(-2)
    largest = sums.max() if over_the_batch else sums.amax(-1)[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    v = a.transpose(-1, -2) / largest
    for _ in range(steps):
        av = a @ v
        v = v @ (13 * eye - av @ (15 * eye - av @ (7 * eye - av))) / 4
    return v


def nystrom(q, k, v, count, padding=None, causal=False, razavi_steps=6, over_the_batch=False):
    """padding [N, seqlen], True where a token is there."""
    n, seqlen, dim = q.shape
    there = torch.ones(n, seqlen, dtype=torch.bool, device=q.device) if padding is None else padding
    if seqlen <= count:
        keep = there[:, None] & (triangle(seqlen, seqlen, q.device) if causal else True)
        return softmax_attention(q, k, v, keep)

    def means(x):
        rows = []
        for part in segments(seqlen, count):
            weight = there[:, part, None].to(x.dtype)
            rows.append((x[:, part] * weight).sum(1) / weight.sum(1).clamp_min(1))
        return torch.stack(rows, 1)

    ql, kl = means(q), means(k)
    first = (q @ kl.transpose(1, 2) / math.sqrt(dim)).softmax(-1)
    second = (ql @ kl.transpose(1, 2) / math.sqrt(dim)).softmax(-1)
    keep = there[:, None].expand(n, count, seqlen)
    if causal:
        ends = torch.tensor([part.stop for part in segments(seqlen, count)], device=q.device)
        keep = keep & (torch.arange(seqlen, device=q.device) < ends[:, None])
    third = softmax_attention(ql, k, v, keep)
    inverse = torch.linalg.pinv(second) if razavi_steps is None else razavi(second, razavi_steps, over_the_batch)
    return first @ inverse @ third


def orthogonal_landmarks(q, count, first):
    """Greedily from the rows `first` of each of N."""
    chosen = []
    for rows, start in zip(q, first, strict=True):
        directions = rows / rows.norm(dim=-1, keepdim=True)
        picked = [int(start)]
        while len(picked) < count:
            cosines = (directions @ directions[picked].T).abs().amax(1)
            cosines[picked] = torch.inf
            picked.append(int(cosines.argmin()))
        chosen.append(rows[sorted(picked)])
    return torch.stack(chosen)


def orthoformer(q, k, v, landmarks):
    return softmax_attention(q, landmarks, softmax_attention(landmarks, k, v))


def fourier_mix(x):
    def cosines(n):
        places = torch.arange(n, device=x.device)
        return torch.outer(places, places).double() * (2 * math.pi / n)

    seq, dim = cosines(x.shape[-2]), cosines(x.shape[-1])
    real = torch.cos(seq).to(x.dtype) @ x @ torch.cos(dim).to(x.dtype)
    return real - torch.sin(seq).to(x.dtype) @ x @ torch.sin(dim).to(x.dtype)


def lambda_layer(q, k, v, rel_pos_emb, paper=False):
    seqlen, longest = q.shape[1], (rel_pos_emb.shape[0] + 1) // 2
    index = torch.arange(seqlen, device=q.device)
    e = rel_pos_emb[index[None] - index[:, None] + longest - 1]  # [i, j, dim]
    content = q @ (k.softmax(-1).transpose(1, 2) @ v)
    if paper:
        return content + torch.einsum("bnk,nmk,bmv->bnv", q, e, v)
    return content + torch.einsum("bnk,ink->bn", q, e)[..., None] * v


def pooling(x, size):
    batch, seqlen, dim = x.shape
    side = math.isqrt(seqlen)
    grid = x.view(batch, side, side, dim)
    rows = []
    for i in range(side):
        for j in range(side):
            near = grid[:, max(i - size // 2, 0) : i + size // 2 + 1, max(j - size // 2, 0) : j + size // 2 + 1]
            rows.append(near.mean((1, 2)))
    return torch.stack(rows, 1) - x


def visual(x, w):
    """w: the tensors of a state dict."""
    batch, seqlen, dim = x.shape
    side = math.isqrt(seqlen)
    image = x.transpose(1, 2).reshape(batch, dim, side, side)

    def conv(t, name, **options):
        return F.conv2d(t, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    u = F.gelu(conv(image, "block.0"))
    near = conv(u, "block.2.conv0", padding=2, groups=dim)
    wide = conv(near, "block.2.conv_spatial", padding=9, dilation=3, groups=dim)
    out = image + conv(u * conv(wide, "block.2.conv1"), "block.3")
    return out.flatten(2).transpose(1, 2)


def compositional(x, w, heads, rules, *, scale, qk_rule, nonlinear, q_compose, keep=None):
    """Self-attention of x [batch, seqlen, dim_model]; one head, rule and token after the other."""

    def linear(t, name):
        return F.linear(t, w[f"{name}.weight"], w.get(f"{name}.bias"))

    q, k, v = (linear(x, f"in_proj_container.{letter}_proj") for letter in "qkv")
    batch, seqlen, _ = x.shape
    queries, keys = q.view(batch, seqlen, heads, -1), k.view(batch, seqlen, heads, -1)
    values = v.view(batch, seqlen, rules, -1)
    merged = []
    for h in range(heads):
        scores = queries[:, :, h] @ keys[:, :, h].transpose(1, 2) * scale
        if keep is not None:
            scores = scores.masked_fill(~keep, -torch.inf)
        p = scores.softmax(-1)
        chooser = (
            linear(queries[:, :, h], "value_q")
            if q_compose
            else linear(x, "value_q").view(batch, seqlen, heads, -1)[:, :, h]
        )
        found, score = [], []
        for r in range(rules):
            a = p @ values[:, :, r]
            found.append(a)
            if qk_rule:
                score.append((chooser * chooser.shape[-1] ** -0.5 * linear(a, "value_k")).sum(-1))
            else:
                pair = torch.cat([a, chooser], -1)
                if nonlinear:
                    pair = F.linear(
                        F.relu(linear(pair, "score_network.0")),
                        w["score_network.2.weight"],
                        w.get("score_network.2.bias"),
                    )
                else:
                    pair = linear(pair, "score_network")
                score.append(pair[..., 0])
        choice = torch.stack(score, -1).softmax(-1)
        merged.append((torch.stack(found, -2) * choice[..., None]).sum(-2))
    return linear(torch.cat(merged, -1), "out_proj")


def favor_features(x, omega, paired, epsilon=1e-6):
    x = x * x.shape[-1] ** -0.25
    m = omega.shape[1] * (2 if paired else 1)
    offset = -(x**2).sum(-1, keepdim=True) / 2 - math.log(m) / 2 + epsilon
    signs = (1, -1) if paired else (1,)
    return torch.cat([torch.exp(sign * (x @ omega) + offset) for sign in signs], -1)


def favor(q, k, v, omega, paired, causal=False):
    weights = favor_features(q, omega, paired) @ favor_features(k, omega, paired).transpose(1, 2)
    if causal:
        weights = weights.tril()
    return weights @ v / weights.sum(-1, keepdim=True)
