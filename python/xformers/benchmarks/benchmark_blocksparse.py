"""Block-sparse attention by the share of blocks that are seen, beside dense attention of PyTorch with a mask."""

import torch
import torch.nn.functional as F

from xformers.components.attention import BlockSparseAttention
from xformers.components.attention.attention_patterns import layout_to_pattern
from xformers.helpers.training import program

from ._sides import Sides, both_directions, parser_of, report_of

SHAPES = [(1, 8, 1024, 64), (1, 8, 2048, 64)]  # batch, heads, seqlen, head_dim


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--block_sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for batch, heads, seqlen, dim in [(1, 2, 64, 8)] if options.smoke else SHAPES:
            q, k, v = (torch.randn(batch, heads, seqlen, dim, requires_grad=True, **factory) for _ in range(3))
            for block in [16] if options.smoke else options.block_sizes:
                for density in options.densities[:1] if options.smoke else options.densities:
                    layout = (torch.rand(heads, seqlen // block, seqlen // block) < density).long()
                    layout |= torch.eye(seqlen // block, dtype=torch.long)
                    module = BlockSparseAttention(layout, block, num_heads=heads).to(options.device)
                    mask = layout_to_pattern(layout, block).bool().to(options.device)
                    sides: Sides = {
                        "ours": lambda q, k, v, m=module: m(q, k, v),
                        "masked SDPA": lambda q, k, v, m=mask: F.scaled_dot_product_attention(q, k, v, m),
                        "dense SDPA": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
                    }
                    name = f"{batch} x {heads} x {seqlen} x {dim}, blocks of {block}, density {density}"
                    both_directions(report, name, sides, q, k, v)


if __name__ == "__main__":
    program(main)
