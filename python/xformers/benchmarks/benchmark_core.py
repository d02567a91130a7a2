"""The products and the softmax of components.attention.core on sparse masks, beside the dense ones."""

import torch

from xformers.components.attention.core import SparseCS, _matmul_with_mask, _softmax, bmm
from xformers.helpers.training import program

from ._sides import both_directions, parser_of, report_of

SHAPES = [(8, 256, 64), (8, 512, 64), (8, 1024, 64)]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for batch, length, dim in [(2, 32, 8)] if options.smoke else SHAPES:
            q, k = (torch.randn(batch, length, dim, requires_grad=True, **factory) for _ in range(2))
            for density in options.densities[:1] if options.smoke else options.densities:
                mask = torch.rand(length, length, device=options.device) < density
                mask |= torch.eye(length, dtype=torch.bool, device=options.device)
                sparse = SparseCS(mask)
                size = f"{batch} x {length} x {dim}, density {density}"

                def product(a: torch.Tensor, b: torch.Tensor, mask: object) -> torch.Tensor:
                    made = _matmul_with_mask(a, b.transpose(1, 2), mask)
                    return made.values if isinstance(made, SparseCS) else made

                def attend(a: torch.Tensor, b: torch.Tensor, mask: object) -> torch.Tensor:
                    return bmm(_softmax(_matmul_with_mask(a, b.transpose(1, 2), mask)), b)

                for name, function in (("masked product", product), ("product, softmax, product", attend)):
                    sides = {
                        "sparse": lambda a, b, f=function, m=sparse: f(a, b, m),
                        "dense": lambda a, b, f=function, m=mask: f(a, b, m),
                    }
                    both_directions(report, f"{name} {size}", sides, q, k)


if __name__ == "__main__":
    program(main)
