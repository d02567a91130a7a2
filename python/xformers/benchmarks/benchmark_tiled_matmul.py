"""tiled_matmul: one product of many tiles, beside as many products and sums."""

import torch

from xformers.helpers.training import program
from xformers.ops import tiled_matmul

from ._sides import parser_of, report_of, seconds_of

SHAPES = [((512, 256), (256, 512), (512, 128)), ((1024, 1024), (512, 512), (768, 256))]  # heights, inner, widths


def main(arguments: list[str] | None = None) -> None:
    options = parser_of(__doc__).parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for heights, inner, widths in [((8, 4), (4, 8), (8, 2))] if options.smoke else SHAPES:
            a = [[torch.randn(m, k, **factory) for k in inner] for m in heights]
            b = [[torch.randn(k, n, **factory) for n in widths] for k in inner]

            def eager(a: list = a, b: list = b) -> list:  # type: ignore[type-arg]
                columns = range(len(b[0]))
                return [[sum(x @ b[k][n] for k, x in enumerate(row)) for n in columns] for row in a]

            def ours(a: list = a, b: list = b) -> list:  # type: ignore[type-arg]
                return tiled_matmul(a, b)

            with torch.no_grad():
                times = seconds_of({"ours": ours, "eager": eager}, options.samples)
            report.row(f"{heights} x {inner} x {widths}", times)


if __name__ == "__main__":
    program(main)
