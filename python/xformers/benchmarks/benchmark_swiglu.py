"""SwiGLU, fused and packed, beside the same layers in eager PyTorch."""

import argparse

import torch
import torch.nn.functional as F

from xformers.helpers.training import program
from xformers.ops import SwiGLU

from ._sides import both_directions, parser_of, report_of

SHAPES = [(2048, 512, 1408), (4096, 1024, 2816), (2048, 2048, 5632)]  # tokens, dim, hidden


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for tokens, dim, hidden in [(8, 16, 24)] if options.smoke else SHAPES:
            packed = SwiGLU(dim, hidden, bias=options.bias).to(**factory)
            x = torch.randn(tokens, dim, requires_grad=True, **factory)

            def eager(x: torch.Tensor, layer: SwiGLU = packed) -> torch.Tensor:
                assert layer.w12 is not None
                gate, up = F.linear(x, layer.w12.weight, layer.w12.bias).chunk(2, -1)
                return F.linear(F.silu(gate) * up, layer.w3.weight, layer.w3.bias)

            both_directions(report, f"{tokens} x {dim}, hidden {hidden}", {"ours": packed, "eager": eager}, x)


if __name__ == "__main__":
    program(main)
