"""softmax and log_softmax, causal or not, beside PyTorch's."""

import torch

from xformers.helpers.training import program
from xformers.triton.softmax import log_softmax, softmax

from ._sides import Sides, both_directions, parser_of, report_of

SHAPES = [(8, 384, 384), (8, 784, 512), (4, 2048, 384), (4, 2048, 2048), (2, 2048, 4096)]


def main(arguments: list[str] | None = None) -> None:
    options = parser_of(__doc__).parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for shape in [(2, 16, 16)] if options.smoke else SHAPES:
            size = " x ".join(map(str, shape))
            x = torch.randn(shape, requires_grad=True, **factory)
            both_directions(report, f"softmax {size}", {"ours": softmax, "eager": lambda x: x.softmax(-1)}, x)
            sides: Sides = {"ours": log_softmax, "eager": lambda x: x.log_softmax(-1)}
            both_directions(report, f"log_softmax {size}", sides, x)
            hidden = torch.ones(shape[1:], dtype=torch.bool, device=options.device).triu(1)
            sides = {
                "ours": lambda x: softmax(x, causal=True),
                "eager": lambda x, h=hidden: x.masked_fill(h, -torch.inf).softmax(-1),
            }
            both_directions(report, f"causal softmax {size}", sides, x)


if __name__ == "__main__":
    program(main)
