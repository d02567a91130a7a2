"""bench_components.py [--rows NAME ...] [--device cpu] [--rounds N]   the attention mechanisms and MultiHeadDispatch.

Each mechanism forward and backward (batch 2, 8 heads, dim 512) against its formula in eager PyTorch, MultiHeadDispatch
against torch.nn.MultiheadAttention(need_weights=False), and sparse masks against dense ones. Both sides of a row take
turns in one run; times are medians. JSON lines, one a row: milliseconds of both, and how many times faster ours is.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from xformers.components import MultiHeadDispatch
from xformers.components.attention import ScaledDotProduct, build_attention
from xformers.components.attention.attention_patterns import layout_to_pattern
from xformers.components.attention.core import SparseCS, scaled_dot_product_attention

import xformers  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
import mechanisms_reference as plain  # noqa: E402

BATCH, HEADS, DIM = 2, 8, 512
SHAPES = [(8, 384, 128), (8, 784, 512), (4, 1024, 768), (4, 2048, 1024), (2, 2048, 2048), (2, 2048, 4096)]


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def once(step, device):
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def compare(name, ours, theirs, args):
    """Alternating, after one call of each."""
    times = {"ours": [], "plain": []}
    for step in (ours, theirs):
        step()
    for _ in range(args.rounds):
        times["ours"].append(once(ours, args.device))
        times["plain"].append(once(theirs, args.device))
    ours_ms, plain_ms = (1e3 * statistics.median(times[side]) for side in ("ours", "plain"))
    row = {
        "name": name,
        "ours_ms": round(ours_ms, 2),
        "plain_ms": round(plain_ms, 2),
        "ratio": round(plain_ms / ours_ms, 3),
    }
    print(json.dumps(row), flush=True)
    return row["ratio"]


def with_backward(function, *inputs):
    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        out.backward(torch.ones_like(out))

    return step


def chunked_favor(q, k, v, omega, paired, chunk=128):
    """Causal, with the features of all tokens in memory."""
    fq, fk = plain.favor_features(q, omega, paired), plain.favor_features(k, omega, paired)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    state, outs = torch.zeros(q.shape[0], fq.shape[-1], v.shape[-1], dtype=q.dtype, device=q.device), []
    for a, b, c in zip(fq.split(chunk, 1), fk.split(chunk, 1), v.split(chunk, 1), strict=True):
        outs.append((a @ b.transpose(1, 2)).tril() @ c + a @ state)
        state = state + b.transpose(1, 2) @ c
    out = torch.cat(outs, 1)
    return out[..., :-1] / out[..., -1:]


def mechanism_rows(args):
    seqlen, head = args.seqlen, DIM // HEADS
    options = {"num_heads": HEADS, "dim_model": DIM, "dim_head": head, "seq_len": seqlen, "dropout": 0.0}
    folded = [torch.randn(BATCH * HEADS, seqlen, head, device=args.device, dtype=args.dtype) for _ in range(3)]
    whole = torch.randn(BATCH, seqlen, DIM, device=args.device, dtype=args.dtype)

    def build(name, **more):
        return build_attention({"name": name, **options, **more}).to(args.device, args.dtype)

    def weights(module):
        return module.state_dict(keep_vars=True)

    def scaled_dot_product():
        return build("scaled_dot_product"), plain.softmax_attention, folded

    def nystrom():
        module = build("nystrom")
        count = module.num_landmarks

        def formula(q, k, v):
            ql, kl = (x.unflatten(1, (count, -1)).mean(2) for x in (q, k))
            scale = 1 / math.sqrt(head)
            first, second = (a @ kl.transpose(1, 2) * scale for a in (q, ql))
            third = (ql @ k.transpose(1, 2) * scale).softmax(-1)
            return first.softmax(-1) @ plain.razavi(second.softmax(-1), 6) @ (third @ v)

        return module, formula, folded

    def orthoformer():
        # Choosing landmarks is the same work for both sides, and none of the formula's: random ones.
        module = build("orthoformer", landmark_selection="random")

        def formula(q, k, v):
            index = torch.randint(seqlen, (q.shape[0], 32, 1), device=q.device).expand(-1, -1, head)
            landmarks = torch.cat([q.detach().gather(1, index[:, :16]), k.detach().gather(1, index[:, 16:])], 1)
            return plain.orthoformer(q, k, v, landmarks)

        return module, formula, folded

    def linformer():
        module = build("linformer")
        return module, lambda q, k, v: plain.linformer(q, k, v, module.E.weight, module.F.weight), folded

    def lambda_():
        module = build("lambda")
        return module, lambda q, k, v: plain.lambda_layer(q, k, v, module.rel_pos_emb), folded

    def fourier_mix():
        return build("fourier_mix"), lambda x: torch.fft.fft2(x.float()).real.to(x.dtype), [whole]

    def pooling():
        side = math.isqrt(seqlen)
        x = whole[:, : side * side].contiguous()

        def formula(x):
            image = x.transpose(1, 2).reshape(BATCH, DIM, side, side)
            pooled = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False) - image
            return pooled.flatten(2).transpose(1, 2)

        return build("pooling"), formula, [x]

    def visual():
        module, side = build("visual"), math.isqrt(seqlen)
        return module, lambda x: plain.visual(x, weights(module)), [whole[:, : side * side].contiguous()]

    def compositional():
        module = build("compositional", num_rules=4)
        kinds = {key: getattr(module, key) for key in ("qk_rule", "nonlinear", "q_compose", "scale")}
        return module, lambda x: plain.compositional(x, weights(module), HEADS, 4, **kinds), [whole]

    def favor():
        module = build("favor", causal=True, dim_features=256)
        module(*folded)
        omega = module.feature_map.features.to(args.dtype)
        return module, lambda q, k, v: chunked_favor(q, k, v, omega, True), folded

    def masked(module, keep):
        return module, lambda q, k, v: plain.softmax_attention(q, k, v, keep), folded

    places = torch.arange(seqlen, device=args.device)

    def local():
        module = build("local", window_size=129)
        return masked(module, (places[:, None] - places).abs() <= 64)

    def global_():
        flags = places % 128 == 0
        return masked(build("global", attention_query_mask=flags), flags[:, None] | flags)

    def random():
        module = build("random", r=0.1)
        module(*folded)
        return masked(module, module.rand_attention_mask)

    makers = (
        scaled_dot_product,
        local,
        global_,
        random,
        nystrom,
        orthoformer,
        linformer,
        lambda_,
        fourier_mix,
        pooling,
        visual,
        compositional,
        favor,
    )
    for make in makers:
        name = make.__name__.rstrip("_")
        if not args.rows or name in args.rows:
            module, formula, inputs = make()
            whole_of = (lambda x, m=module: m(x, x, x)) if len(inputs) == 1 else module
            compare(f"{name}:s{seqlen}", with_backward(whole_of, *inputs), with_backward(formula, *inputs), args)


def mask_rows(args):
    """A SparseCS mask, lowered to blocks, against the same mask as a dense bool tensor, both through this library."""
    seqlen = args.seqlen
    inputs = [torch.randn(BATCH * HEADS, seqlen, DIM // HEADS, device=args.device, dtype=args.dtype) for _ in range(3)]
    places = torch.arange(seqlen, device=args.device)
    blocks = seqlen // 64

    def of_blocks(share):
        return layout_to_pattern(torch.rand(blocks, blocks, device=args.device) < share, 64)

    masks = {f"random {share}": torch.rand(seqlen, seqlen, device=args.device) < share for share in (0.001, 0.01, 0.1)}
    masks["window 129"] = (places[:, None] - places).abs() <= 64
    masks |= {f"blocks {share}": of_blocks(share) for share in (0.1, 0.3, 0.5, 0.7, 1.0)}
    for name, keep in masks.items():
        sparse = SparseCS(keep)

        def attention(mask):
            return with_backward(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), *inputs)

        compare(f"mask:{name},s{seqlen}", attention(sparse), attention(keep), args)


def multi_head_rows(args):
    ratios = []
    for batch, seqlen, dim in SHAPES[: args.shapes]:
        heads = max(4, dim // 128)
        ours = MultiHeadDispatch(dim, heads, ScaledDotProduct()).to(args.device, args.dtype)
        theirs = torch.nn.MultiheadAttention(dim, heads, batch_first=True).to(args.device, args.dtype)
        x, y = (torch.randn(batch, seqlen, dim, device=args.device, dtype=args.dtype) for _ in range(2))
        for kind, inputs in (("self", [x]), ("cross", [x, y])):

            def mine(q, k=None, ours=ours):
                return ours(q) if k is None else ours(q, k, k)

            def other(q, k=None, theirs=theirs):
                k = q if k is None else k
                return theirs(q, k, k, need_weights=False)[0]

            name = f"multi_head:{kind},b{batch},s{seqlen},d{dim},h{heads}"
            ratios.append(compare(name, with_backward(mine, *inputs), with_backward(other, *inputs), args))
    print(json.dumps({"name": "multi_head:geometric mean", "ratio": round(statistics.geometric_mean(ratios), 3)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="names of mechanisms, mask and multi_head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the first shapes of multi_head alone")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    mechanism_rows(args)
    if not args.rows or "mask" in args.rows:
        mask_rows(args)
    if not args.rows or "multi_head" in args.rows:
        multi_head_rows(args)


if __name__ == "__main__":
    main()
