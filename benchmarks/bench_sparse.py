"""bench_sparse.py [--rows NAME ...] [--dtype DTYPE] [--rounds N] [--threads N] [--device D] [--quick] [--out FILE]

Sparse tensors, and attention with block masks.

B matrices [M, M] with one random pattern, K columns of the dense matrix. Each operator takes turns with its eager form
(gather, multiply, sum; scatter for softmax) and with torch.sparse where that has it (`sampled_addmm` in fp32 and fp64,
CSR @ dense, one matrix of the batch after the other). Softmax beside a copy of the values too.

On a GPU also products of blocks (rows sdd, dsd, blocks): M = N = K = 4096, a quarter of the blocks at random, in bf16,
beside the dense product and PyTorch's kernels for BSR (torch.sparse._triton_ops), with the TFLOP/s of stored blocks;
rows of their gradients (backward); softmax of blocks.

And there attention (row attention): S 16384, H 16, D 128, bf16, forward and backward, random layouts of each head and
the patterns of sparsity_config, causal. `rate` is the rate of visible blocks over that of the same kernels without a
mask (fwd_sm80, bwd_sm80, forced) in the same run; `share`, of patterns, the time over the share that the mask leaves of
the dense time. Beside flex_attention, compiled, on the same layouts (not --quick: each takes a minute to compile).

Times are medians of one run, in milliseconds, with one thread those of the processor, so that other load counts little;
on a GPU those between two events around calls that the host queues ahead. JSON lines, one a row; all of them and what
ran them into one file (--out). --quick: fewer shapes and rounds, within a minute on an H200.
"""

import argparse
import contextlib
import datetime
import json
import os
import statistics
import time

import torch
from xformers.components.attention import sparsity_config

import xformers
from xformers import operators as ops
from xformers.ops import BlockSparseMask, LowerTriangularMask, memory_efficient_attention

SHAPES = [(8, 1024, 64), (8, 2048, 64), (1, 4096, 64), (1, 4096, 256)]
DENSITIES = [0.1, 0.05, 0.01]
QUEUE_CYCLES = 4_000_000  # about 2 ms, in which the host queues calls


def seconds(step):
    """Of one call: between events on a GPU, around calls of about 2 ms together."""
    if torch.get_default_device().type == "cpu":
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        step()
        return clock() - start

    def run(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(QUEUE_CYCLES)
        begin.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    count = max(1, min(50, int(2e-3 / max(run(1), 1e-6))))
    return run(count) / count


def compare(name, sides, rounds):
    """Alternating, after one call of each; ratios are how many times faster ours is."""
    times = {side: [] for side in sides}
    for step in sides.values():
        step()
    for _ in range(rounds):
        for side, step in sides.items():
            times[side].append(1e3 * seconds(step))
    medians = {side: statistics.median(values) for side, values in times.items()}
    row = {"name": name} | {f"{side}_ms": round(ms, 4) for side, ms in medians.items()}
    row |= {f"over_{side}": round(ms / medians["ours"], 2) for side, ms in medians.items() if side != "ours"}
    print(json.dumps(row), flush=True)
    return row


def csr_rows(args):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    on_gpu = generator.device.type == "cuda"
    rows = []
    for batch, m, k in SHAPES[-2:-1] if args.quick else SHAPES:
        for density in DENSITIES[:1] if args.quick else DENSITIES:
            mask = torch.rand(m, m, generator=generator) < density
            _, offsets, columns = ops.csr_from_dense(mask[None])
            row = torch.arange(m).repeat_interleave(offsets.diff())
            column = columns.long()
            a, b = (torch.randn(batch, m, k, generator=generator).to(args.dtype) for _ in range(2))
            values = torch.randn(batch, len(columns), generator=generator).to(args.dtype)
            copied = torch.empty_like(values)
            wide = args.dtype in (torch.float32, torch.float64)
            has_torch = {"sddmm": wide, "spmm": wide or on_gpu}
            theirs = [torch.sparse_csr_tensor(offsets, columns, v, (m, m)) for v in values] if wide or on_gpu else []
            turned = [x.t() for x in b]

            def eager_softmax(values=values, row=row, m=m, batch=batch):
                index = row.expand(batch, -1)
                top = values.new_full((batch, m), -torch.inf).scatter_reduce(1, index, values, "amax")
                power = (values - top.gather(1, index)).exp()
                return power / power.new_zeros(batch, m).scatter_add(1, index, power).gather(1, index)

            def eager_spmm(values=values, row=row, column=column, b=b, m=m):
                return b.new_zeros(len(b), m, b.shape[2]).index_add_(1, row, values[..., None] * b[:, column])

            cases = {
                "sddmm": {
                    "ours": lambda a=a, b=b, o=offsets, c=columns: ops.sddmm_sputnik(a, b, o, o, c),
                    "eager": lambda a=a, b=b, row=row, column=column: (a[:, row] * b[:, column]).sum(-1),
                    "torch": lambda a=a, t=turned, c=theirs: [
                        torch.sparse.sampled_addmm(p, x, y, beta=0) for p, x, y in zip(c, a, t, strict=True)
                    ],
                },
                "softmax": {
                    "ours": lambda v=values, o=offsets, c=columns, m=m: ops.sparse_softmax_sputnik(m, m, o, v, o, c),
                    "eager": eager_softmax,
                    "copy": lambda v=values, to=copied: to.copy_(v),
                },
                "spmm": {
                    "ours": lambda b=b, v=values, o=offsets, c=columns, m=m: ops.spmm_sputnik(b, o, v, o, c, m),
                    "eager": eager_spmm,
                    "torch": lambda b=b, c=theirs: [p @ x for p, x in zip(c, b, strict=True)],
                },
            }
            for operator, sides in cases.items():
                if args.rows and operator not in args.rows:
                    continue
                if not has_torch.get(operator):
                    sides.pop("torch", None)
                name = f"{operator}:b{batch},m{m},k{k},density{density}"
                rows.append(compare(name, sides, args.rounds))
    return rows


def bsr_kernels():
    """PyTorch's, where it can run them."""
    try:
        from torch.sparse import _triton_ops

        return _triton_ops if hasattr(_triton_ops, "bsr_dense_mm") else None
    except ImportError:
        return None


def block_rows(args, size=4096, density=0.25):
    theirs = bsr_kernels()
    rows = []
    for block in (128, 64, 32, 16):
        layout = torch.rand(1, size // block, size // block) < density
        tables = ops.blocksparse_tables(layout)
        nnz = tables[1].numel()
        a, b = (torch.randn(1, 1, size, size, dtype=torch.bfloat16) for _ in range(2))
        values = torch.randn(1, nnz, block, block, dtype=torch.bfloat16)
        copied = torch.empty_like(values)
        bsr = torch.sparse_bsr_tensor(tables[0], tables[1], values[0], (size, size))
        cases = {
            "sdd": {"ours": lambda a=a, b=b, t=tables, n=block: ops.blocksparse_sdd(a, b.mT, *t[:2], n, *t[2:])},
            "sdd-nn": {"ours": lambda a=a, b=b, t=tables, n=block: ops.blocksparse_sdd(a, b, *t[:2], n, *t[2:])},
            "dsd": {"ours": lambda v=values, b=b, t=tables: ops.blocksparse_dsd(v, b, *t[:2], size, *t[2:])},
            "dsd-t": {
                "ours": lambda v=values, b=b, t=tables: ops.blocksparse_dsd(v, b, *t[:2], size, *t[2:], transposed=True)
            },
            "blocks-softmax": {
                "ours": lambda v=values, t=tables: ops.blocksparse_softmax(v, *t[:2], 1, size, 0.1),
                "copy": lambda v=values, to=copied: to.copy_(v),
            },
        }
        for name in ("sdd", "dsd"):
            cases[name]["dense"] = lambda a=a, b=b: a @ b
        if theirs is not None:
            cases["sdd"]["bsr"] = lambda m=bsr, a=a, b=b: theirs.sampled_addmm(m, a[0, 0], b[0, 0].mT, beta=0.0)
            cases["dsd"]["bsr"] = lambda m=bsr, b=b: theirs.bsr_dense_mm(m, b[0, 0])
        for name, sides in cases.items():
            if args.rows and name.split("-")[0] not in args.rows:
                continue
            for side in [side for side in sides if side == "bsr"]:
                try:
                    sides[side]()
                except Exception as error:  # it has no such product here
                    print(json.dumps({"name": f"{name}:block{block}", "bsr": str(error)[:80]}), flush=True)
                    del sides[side]
            row = compare(f"{name}:m{size},block{block},density{density}", sides, args.rounds)
            if "softmax" not in name:
                print(
                    json.dumps({"name": row["name"], "TFLOP/s": round(2e-9 * nnz * block**2 * size / row["ours_ms"])})
                )
            rows.append(row)
    return rows


def gradient_rows(args, size=4096, density=0.25):
    """Gradients of products of blocks, beside those of the dense product."""
    rows = []
    for block in (128, 32) if args.quick else (128, 64, 32, 16):
        tables = ops.blocksparse_tables(torch.rand(1, size // block, size // block) < density)
        a, b = (torch.randn(1, 1, size, size, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        values = torch.randn(1, tables[1].numel(), block, block, dtype=torch.bfloat16, requires_grad=True)
        products = {
            "sdd": (ops.blocksparse_sdd(a, b.mT, *tables[:2], block, *tables[2:]), (a, b)),
            "dsd": (ops.blocksparse_dsd(values, b, *tables[:2], size, *tables[2:]), (values, b)),
        }
        dense = a @ b
        for name, (out, inputs) in products.items():
            sides = {
                "ours": gradients(out, inputs),
                "dense": gradients(dense, (a, b)),
            }
            rows.append(compare(f"{name}-backward:m{size},block{block},density{density}", sides, args.rounds))
    return rows


def gradients(out, inputs):
    incoming = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, incoming, retain_graph=True)


@contextlib.contextmanager
def forced(kernel):
    """The kernel that attention takes meanwhile."""
    os.environ["XFORMERS_KERNEL"] = kernel
    try:
        yield
    finally:
        del os.environ["XFORMERS_KERNEL"]


def with_kernel(kernel, step):
    def run():
        with forced(kernel):
            return step()

    return run


class Flex:
    """flex_attention, compiled once: a layout is a table of squares of 16 x 16, of which a mask is made beforehand."""

    def __init__(self, inputs):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.seqlen, self.heads = inputs[0].shape[1:3]
        self.turned = [x.detach().transpose(1, 2).requires_grad_() for x in inputs]
        table = torch.zeros(self.heads, self.seqlen // 16, self.seqlen // 16, dtype=torch.bool)
        device = str(table.device)
        self.table = table
        self.attention = torch.compile(flex_attention, dynamic=False)
        make = torch.compile(create_block_mask, dynamic=False)

        def visible(b, h, q, k):
            return table[h, q // 16, k // 16]

        self.make_mask = lambda: make(visible, 1, self.heads, self.seqlen, self.seqlen, device=device)

    def of(self, layout, block):
        """Forward, and the step of its backward."""
        squares = layout.repeat_interleave(block // 16, -2).repeat_interleave(block // 16, -1)
        self.table.copy_(squares.expand_as(self.table))
        mask = self.make_mask()
        out = self.attention(*self.turned, block_mask=mask)
        return lambda: self.attention(*self.turned, block_mask=mask), gradients(out, self.turned)


def flex_of(args, inputs):
    """None where it is not made for this, or takes too long to compile."""
    if args.quick:
        return None
    try:
        flex = Flex(inputs)
        flex.of(torch.ones(1, 1, 1, dtype=torch.bool).expand(1, flex.seqlen // 128, flex.seqlen // 128), 128)
        return flex
    except Exception as error:
        print(json.dumps({"name": "flex_attention", "error": str(error)[:200]}), flush=True)
        return None


def attention_row(args, name, inputs, mask, dense, density, what, theirs=()):
    """Forward and backward under one mask. dense: what they are compared with, by name: two steps each."""
    out = memory_efficient_attention(*inputs, mask)
    ours = (lambda: memory_efficient_attention(*inputs, mask), gradients(out, inputs))
    rows = []
    for i, direction in enumerate(("forward", "backward")):
        sides = {"ours": ours[i]} | {side: steps[i] for side, steps in dense.items()}
        if theirs:
            sides["flex"] = theirs[i]
        row = compare(f"attention-{direction}:{name}", sides, args.rounds)
        for side in dense:
            share = density * row[f"{side}_ms"] / row["ours_ms"]
            row |= {f"{what}_of_{side}": round(share if what == "rate" else 1 / share, 3)}
        print(json.dumps({"name": row["name"]} | {k: v for k, v in row.items() if what in k}), flush=True)
        rows.append(row)
    return rows


def dense_steps(inputs, mask=None):
    """Without blocks: the sm_80 kernels, whose rate goals count from, and those that are chosen here."""

    def plain():
        return memory_efficient_attention(*inputs, mask)

    with forced("fwd_sm80"):
        out = plain()
    backward = gradients(out, inputs)
    return {
        "sm80": (with_kernel("fwd_sm80", plain), with_kernel("bwd_sm80", backward)),
        "dense": (plain, backward),
    }


def attention_rows(args, seqlen=16384, heads=16, head_dim=128):
    def tensors(seqlen, heads, kv_heads):
        return [
            torch.randn(1, seqlen, n, head_dim, dtype=torch.bfloat16, requires_grad=True)
            for n in (heads, kv_heads, kv_heads)
        ]

    inputs = tensors(seqlen, heads, heads)
    dense, causal = dense_steps(inputs), dense_steps(inputs, LowerTriangularMask())
    flex = flex_of(args, inputs)
    rows = []
    for block in (128, 64, 32, 16):
        for density in (0.25,) if args.quick else (0.1, 0.25, 0.5):
            layout = torch.rand(heads, seqlen // block, seqlen // block) < density
            theirs = flex.of(layout, block) if flex else ()
            of_all = layout.float().mean().item()
            mask = BlockSparseMask(layout, block)
            rows += attention_row(args, f"block{block},density{density}", inputs, mask, dense, of_all, "rate", theirs)
    layout = torch.ones(heads, seqlen // 128, seqlen // 128, dtype=torch.bool)
    mask = BlockSparseMask(layout, 128)
    rows += attention_row(args, "block128,all", inputs, mask, dense, 1, "rate")
    rows += attention_row(args, "block128,all,causal", inputs, mask.make_causal(), causal, 1, "rate")
    for pattern in ("BigBird", "Fixed", "BSLongformer"):
        config = getattr(sparsity_config, f"{pattern}SparsityConfig")(num_heads=heads, block_size=64)
        layout = config.make_layout(seqlen).bool().to(torch.get_default_device())
        rows += pattern_rows(args, f"{pattern},block64", inputs, layout, 64, dense)
    rows += long_rows(args, tensors)
    # Heads of a group on one layout share the blocks of keys that they see.
    block, per_group = 32, 4
    layout = torch.rand(heads // per_group, seqlen // block, seqlen // block) < 0.25
    grouped = tensors(seqlen, heads, heads // per_group)
    grouped = [x.unflatten(2, (heads // per_group, -1)) for x in grouped]
    grouped = [grouped[0]] + [x.expand(-1, -1, -1, per_group, -1) for x in grouped[1:]]
    grouped = [x.detach().requires_grad_() for x in grouped]
    mask = BlockSparseMask(layout, block)
    name = f"block{block},density0.25,groups of {per_group}"
    rows += attention_row(args, name, grouped, mask, dense_steps(grouped), layout.float().mean().item(), "rate")
    return rows + mask_rows(args, flex)


def pattern_rows(args, name, inputs, layout, block, dense):
    """A layout under a causal band: the time over the share of the whole that is left."""
    layout = layout.tril()
    mask = BlockSparseMask(layout, block).make_causal()
    # Of a block on the diagonal half is left.
    left = (layout.sum() - 0.5 * layout.diagonal(dim1=-2, dim2=-1).sum()).item() / layout.numel()
    return attention_row(args, f"{name},causal", inputs, mask, dense, left, "share")


def long_rows(args, tensors, seqlen=131072, heads=8, block=128):
    """A long sequence: time, and memory beyond outputs and row statistics."""
    if args.quick:
        return []
    inputs = tensors(seqlen, heads, heads)
    config = sparsity_config.BSLongformerSparsityConfig(num_heads=heads, block_size=block)
    layout = config.make_layout(seqlen).bool().to(torch.get_default_device())
    return pattern_rows(args, f"BSLongformer,S{seqlen},block{block}", inputs, layout, block, dense_steps(inputs))


def mask_rows(args, flex, seqlen=32768, heads=32, block=128):
    """The index lists of a mask, from a layout and from indices."""
    blocks = seqlen // block
    layout = torch.rand(1, heads, blocks, blocks) < 0.25
    indices = torch.rand(1, heads, blocks, blocks).topk(blocks // 4).indices
    rows = [
        compare(f"lists:{name}", {"ours": make}, args.rounds)
        for name, make in {
            "from a layout": lambda: BlockSparseMask(layout, block),
            "from indices": lambda: BlockSparseMask.from_indices(indices, num_key_blocks=blocks, block_size=block),
        }.items()
    ]
    if flex:
        rows.append(compare("lists:flex", {"ours": flex.make_mask}, args.rounds))
    return rows


def summary(rows):
    for operator in dict.fromkeys(row["name"].split(":")[0] for row in rows):
        of = [row for row in rows if row["name"].startswith(operator + ":")]
        for side in ("over_eager", "over_torch", "over_copy", "over_bsr"):
            ratios = [row[side] for row in of if side in row]
            if ratios:
                mean = round(statistics.geometric_mean(ratios), 3)
                print(json.dumps({"name": f"{operator}: geometric mean", side: mean, "least": min(ratios)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--commit", default="", help="recorded as it is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds = min(args.rounds, 3)
    on_gpu = torch.device(args.device).type == "cuda"
    with torch.device(args.device):
        rows = csr_rows(args)
        if on_gpu:
            rows += block_rows(args)
            if not args.rows or "backward" in args.rows:
                rows += gradient_rows(args)
            if not args.rows or "attention" in args.rows:
                rows += attention_rows(args)
        summary(rows)
    if args.out:
        record = {
            "gpu": torch.cuda.get_device_name() if on_gpu else "none",
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "xformers": xformers.__version__,
            "commit": args.commit,
            "rows": rows,
        }
        with open(args.out, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
