"""index_select_cat and scaled_index_add, beside the same in eager PyTorch."""

import torch

from xformers.helpers.training import program
from xformers.ops import index_select_cat, scaled_index_add

from ._sides import both_directions, parser_of, report_of, seconds_of

SHAPES = [(64, 197, 384), (64, 197, 1024), (16, 1024, 768)]  # samples, tokens, width


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--keep", type=float, default=0.4, help="share of the samples that are chosen")
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for samples, tokens, width in [(4, 5, 8)] if options.smoke else SHAPES:
            size = f"{samples} x {tokens} x {width}"
            chosen = torch.randperm(samples, device=options.device)[: max(1, int(options.keep * samples))]
            x = torch.randn(samples, tokens * width, requires_grad=True, **factory)
            sides = {
                "ours": lambda x, i=chosen: index_select_cat([x, x], [i, i]),
                "eager": lambda x, i=chosen: torch.cat([x[i].flatten(), x[i].flatten()]),
            }
            both_directions(report, f"index_select_cat {size}", sides, x)
            base = torch.randn(samples, tokens, width, **factory)
            source = torch.randn(len(chosen), tokens, width, **factory)
            scaling = torch.randn(width, **factory)
            steps = {
                "ours": lambda b=base, i=chosen, s=source, g=scaling: scaled_index_add(b, i, s, g, 0.01),
                "eager": lambda b=base, i=chosen, s=source, g=scaling: b.index_add_(0, i, s * g, alpha=0.01),
            }
            report.row(f"scaled_index_add {size}", seconds_of(steps, options.samples))


if __name__ == "__main__":
    program(main)
