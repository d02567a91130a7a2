"""2:4 sparsity: packing beside a copy, and MLPs whose weights or activations are packed beside dense ones (CPU)."""

import torch
from torch import nn

from xformers.helpers.training import program
from xformers.ops.sp24 import MLP24, sparsify24

from ._sides import Sides, both_directions, forward, parser_of, report_of, seconds_of

SHAPES = [(1024, 512, 1536), (512, 1024, 4096)]  # tokens, dim, hidden


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.set_defaults(device="cpu", dtype="bfloat16")
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for tokens, dim, hidden in [(32, 64, 128)] if options.smoke else SHAPES:
            w = torch.randn(hidden, dim, **factory)
            sides: Sides = {"sparsify24": sparsify24, "clone": torch.clone}
            times = seconds_of({name: forward(f, w) for name, f in sides.items()}, options.samples)
            report.row(f"pack {hidden} x {dim}", times)
            layers = {
                "weights": MLP24(dim, hidden, dim, sparsity="weights", dtype=factory["dtype"]),
                "activations": MLP24(dim, hidden, dim, sparsity="activations", dtype=factory["dtype"]),
                "dense": nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim)).to(**factory),
            }
            x = torch.randn(tokens, dim, requires_grad=True, **factory)
            both_directions(report, f"MLP {tokens} x {dim}, hidden {hidden}", layers, x)


if __name__ == "__main__":
    program(main)
