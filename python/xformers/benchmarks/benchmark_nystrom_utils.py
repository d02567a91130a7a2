"""The pseudo-inverse of Nystrom attention by iteration, beside torch.linalg.pinv."""

import torch

from xformers.components.attention.utils import iterative_pinv
from xformers.helpers.training import program

from ._sides import forward, parser_of, report_of, seconds_of

SHAPES = [(16, 64), (64, 64), (16, 128), (16, 256)]  # matrices, size


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--iterations", type=int, default=6)
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for count, size in [(2, 8)] if options.smoke else SHAPES:
            a = torch.randn(count, size, size, **factory).softmax(-1)
            sides = {
                "iterative": lambda a: iterative_pinv(a, options.iterations),
                "iterative, original init": lambda a: iterative_pinv(a, options.iterations, True),
                "linalg.pinv": lambda a: torch.linalg.pinv(a.float()),
            }
            times = seconds_of({name: forward(f, a) for name, f in sides.items()}, options.samples)
            report.row(f"{count} x {size} x {size}", times)


if __name__ == "__main__":
    program(main)
