"""Reversible stacks against the same layers with stored activations, 6 and 24 layers: steps and memory."""

import torch
from torch import nn

from xformers.components import PreNorm
from xformers.components.feedforward import MLP
from xformers.components.reversible import ReversibleSequence
from xformers.helpers.training import program

from ._sides import bytes_kept, parser_of, report_of, seconds_of, training_step


class Stored(nn.Module):
    """The blocks one by one, which autograd keeps."""

    def __init__(self, sequence: ReversibleSequence):
        super().__init__()
        self.blocks = sequence.blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    options = parser.parse_args(arguments)
    with report_of(options) as report:
        factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        batch, seqlen, dim = (2, 4, 16) if options.smoke else (4, 512, 256)

        def layer() -> nn.Module:
            return PreNorm(dim, MLP(dim, 0.1, "gelu", 4), "layernorm")

        for layers in (6, 24):
            sequence = ReversibleSequence([(layer(), layer()) for _ in range(layers)]).to(**factory)
            x = torch.randn(batch, seqlen, 2 * dim, requires_grad=True, **factory)
            sides: dict[str, nn.Module] = {"reversible": sequence, "stored": Stored(sequence)}
            times = seconds_of({k: training_step(m, x) for k, m in sides.items()}, options.samples)
            report.row(f"{layers} layers", times, {k: bytes_kept(m, x) for k, m in sides.items()})


if __name__ == "__main__":
    program(main)
