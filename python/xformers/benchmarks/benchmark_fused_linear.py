"""FusedLinear, a linear layer with its activation, beside the two layers in eager PyTorch."""

import argparse

import torch
from torch import nn

from xformers.components import Activation, build_activation
from xformers.helpers.training import program
from xformers.triton import FusedLinear

from ._sides import both_directions, parser_of, report_of

SHAPES = [(8, 256, 512), (8, 512, 1024), (4, 1024, 1024), (2, 2048, 2048)]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--activations", nargs="+", choices=[a.value for a in Activation], default=["gelu"])
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for activation in options.activations:
            act = nn.GELU("tanh") if activation == "gelu" else build_activation(activation)
            for shape in [(2, 4, 32)] if options.smoke else SHAPES:
                x, dim = torch.randn(shape, requires_grad=True, **factory), shape[-1]
                ours = FusedLinear(dim, 4 * dim, options.bias, activation).to(**factory)
                eager = nn.Sequential(nn.Linear(dim, 4 * dim, options.bias), act).to(**factory)
                sides = {"ours": ours, "eager": eager}
                both_directions(report, f"{activation} {' x '.join(map(str, shape))}", sides, x)


if __name__ == "__main__":
    program(main)
