"""Trains a tiny GPT on bytes, spread over processes, beside the same training in one process.

    torchrun --nproc-per-node 2 examples/parallel/train.py

By features: weights by columns and rows, tokens by shards. By sequence: tokens alone, with context parallelism, by any
--method. All begin from the same seed; the losses differ by roundings alone.
"""

import argparse
import os
import tempfile
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from xformers.ops.differentiable_collectives import all_reduce

from xformers import ops as xops
from xformers.ops.context_parallel import context_parallel_attention, plan_context_parallel, shard

TEXT = b"the kernel attends to the tokens that the mask lets it see, and the mask lets it see the past. "
WIDTH, HEADS, SEQLEN, BATCH = 64, 4, 96, 4


class Block(nn.Module):
    """Tokens first, [tokens, batch, WIDTH]. `features`: this rank's heads and hidden features of all tokens inside."""

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool):
        super().__init__()
        options = {"process_group": group, "bias": False, "sequence_parallel": sequence_parallel}
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = xops.ColumnParallelLinear(WIDTH, [WIDTH] * 3, gather_output=False, **options)
        self.out = xops.RowParallelLinear(WIDTH, WIDTH, input_is_parallel=True, **options)
        self.up = xops.ColumnParallelLinear(WIDTH, 4 * WIDTH, gather_output=False, **options)
        self.down = xops.RowParallelLinear(4 * WIDTH, WIDTH, input_is_parallel=True, **options)

    def forward(self, x, attend):
        heads = HEADS // self.qkv.process_group.size()
        # Features are dealt in turn, so a rank's features are those of its own heads: [head_dim, heads].
        q, k, v = (t.unflatten(-1, (-1, heads)).permute(1, 0, 3, 2) for t in self.qkv(self.norm1(x)))
        x = x + self.out(attend(q, k, v).permute(1, 0, 3, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(SEQLEN, WIDTH)
        self.blocks = nn.ModuleList(Block(group, sequence_parallel) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, tokens, positions, attend):
        x = self.tokens(tokens) + self.positions(positions)[:, None]
        for block in self.blocks:
            x = block(x, attend)
        return self.head(self.norm(x))


def batch_of(step):
    """[SEQLEN, BATCH] inputs and targets, the same on all ranks."""
    generator = torch.Generator().manual_seed(step)
    text = torch.frombuffer(bytearray(TEXT * 4), dtype=torch.uint8).long()
    first = torch.randint(0, len(TEXT), (BATCH,), generator=generator)
    rows = torch.stack([text[i : i + SEQLEN + 1] for i in first.tolist()], 1)
    return rows[:-1], rows[1:]


def train(steps, spread, group, alone, method="auto"):
    """The loss of each step. A rank sums over its own tokens; what is not spread gets its gradients from all ranks."""
    in_features = spread == "features"
    torch.manual_seed(0)
    model = GPT(group if in_features else alone, sequence_parallel=in_features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mask = xops.LowerTriangularMask()
    plan = plan_context_parallel(
        mask, SEQLEN, process_group=group, num_heads=HEADS, head_dim=WIDTH // HEADS,
        layout="contiguous" if in_features else "auto", method=method,
    )  # fmt: skip

    def attend(q, k, v):
        if in_features:
            return xops.memory_efficient_attention(q, k, v, mask)
        return context_parallel_attention(q, k, v, plan=plan)

    spread_parameters = {p for m in model.modules() if isinstance(m, PARALLEL) and in_features for p in m.parameters()}
    losses = []
    for step in range(steps):
        inputs, targets = (shard(t, plan, dim=0) for t in batch_of(step))
        logits = model(inputs, plan.positions, attend)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / (SEQLEN * BATCH)
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if parameter not in spread_parameters:
                all_reduce(parameter.grad, process_group=group)
        optimizer.step()
        whole = loss.detach().clone()
        all_reduce(whole, process_group=group)
        losses.append(whole.item())
    return losses


PARALLEL = (xops.ColumnParallelLinear, xops.RowParallelLinear)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--spread",
        nargs="+",
        choices=("features", "sequence"),
        default=["features", "sequence"],
        help="what to share out",
    )
    methods = ("auto", "all_gather", "ring", "ulysses", "hybrid")
    parser.add_argument("--method", choices=methods, default="auto", help="of context parallelism")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:  # without torchrun: one process
        dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)
    group, rank = dist.group.WORLD, dist.get_rank()
    alone = [dist.new_group([r]) for r in range(group.size())][rank]
    expected = train(options.steps, "sequence", alone, alone)
    for spread in options.spread:
        losses = train(options.steps, spread, group, alone, options.method if spread == "sequence" else "auto")
        for step in sorted({*range(0, options.steps, 10), options.steps - 1}) if rank == 0 else ():
            both = f"{losses[step]:.5f} on {group.size()} ranks  {expected[step]:.5f} on one"
            print(f"by {spread}, step {step:3}  loss {both}")
    dist.destroy_process_group()
    time.sleep(0.1)  # Gloo's threads free the last tensors, which they may not do once the interpreter has begun to end


if __name__ == "__main__":
    main()
