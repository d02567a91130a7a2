"""Sampled dense-dense products: chosen elements of q k^T, beside gathering rows, and the whole product."""

import torch

from xformers import operators as ops
from xformers.helpers.training import program

from ._sides import forward, parser_of, report_of, seconds_of

SHAPES = [(8, 1024, 64), (8, 2048, 64), (1, 4096, 64)]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.01, 0.05, 0.1])
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for batch, length, dim in [(2, 32, 8)] if options.smoke else SHAPES:
            q, k = (torch.randn(batch, length, dim, **factory) for _ in range(2))
            for density in options.densities[:1] if options.smoke else options.densities:
                mask = torch.rand(1, length, length, device=options.device) < density
                mask[:, 0] = True
                _, offsets, columns = ops.csr_from_dense(mask)
                rows = torch.arange(length, device=options.device).repeat_interleave(offsets.diff())
                places = columns.long()

                def ours(q: torch.Tensor, k: torch.Tensor, o=offsets, c=columns) -> torch.Tensor:  # type: ignore
                    return ops.sddmm_sputnik(q, k, o, o, c)

                def gathered(q: torch.Tensor, k: torch.Tensor, r=rows, p=places) -> torch.Tensor:  # type: ignore
                    return (q[:, r] * k[:, p]).sum(-1)

                sides = {"ours": ours, "gathered": gathered, "whole": lambda q, k: q @ k.transpose(1, 2)}
                times = seconds_of({n: forward(f, q, k) for n, f in sides.items()}, options.samples)
                report.row(f"{batch} x {length} x {dim}, density {density}", times)


if __name__ == "__main__":
    program(main)
