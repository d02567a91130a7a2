"""FusedLayerNorm beside torch.nn.LayerNorm."""

import torch

from xformers.helpers.training import program
from xformers.triton import FusedLayerNorm

from ._sides import both_directions, parser_of, report_of

SHAPES = [(8, 256, 512), (8, 512, 1024), (4, 1024, 1024), (2, 2048, 2048), (1, 2048, 4096), (1, 1024, 12288)]


def main(arguments: list[str] | None = None) -> None:
    options = parser_of(__doc__).parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for shape in [(2, 4, 32)] if options.smoke else SHAPES:
            x = torch.randn(shape, requires_grad=True, **factory)
            ours, eager = FusedLayerNorm(shape[-1]).to(**factory), torch.nn.LayerNorm(shape[-1], 1e-6).to(**factory)
            both_directions(report, " x ".join(map(str, shape)), {"ours": ours, "eager": eager}, x)


if __name__ == "__main__":
    program(main)
