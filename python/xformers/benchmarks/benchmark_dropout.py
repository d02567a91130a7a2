"""Bias, activation and dropout in one pass beside the three layers in eager PyTorch."""

import argparse

import torch
import torch.nn.functional as F

from xformers.components import Activation, build_activation
from xformers.helpers.training import program
from xformers.triton.dropout import dropout

from ._sides import both_directions, parser_of, report_of

SHAPES = [(8, 256, 512), (8, 512, 1024), (4, 1024, 1024), (2, 2048, 2048), (1, 2048, 4096), (1, 1024, 12288)]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--activations", nargs="+", choices=[a.value for a in Activation], default=["gelu"])
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for activation in options.activations:
            # The fused layers' gelu is the tanh form.
            act = (lambda x: F.gelu(x, approximate="tanh")) if activation == "gelu" else build_activation(activation)
            for shape in [(2, 4, 32)] if options.smoke else SHAPES:
                x = torch.randn(shape, requires_grad=True, **factory)
                bias = torch.randn(shape[-1], requires_grad=True, **factory) if options.bias else None
                inputs = (x,) if bias is None else (x, bias)

                def ours(x: torch.Tensor, bias: torch.Tensor | None = None, name: str = activation) -> torch.Tensor:
                    return dropout(x, options.dropout, bias, name)

                def eager(x: torch.Tensor, bias: torch.Tensor | None = None, act=act) -> torch.Tensor:  # type: ignore
                    return F.dropout(act(x if bias is None else x + bias), options.dropout)

                name = f"{activation} {' x '.join(map(str, shape))}"
                both_directions(report, name, {"ours": ours, "eager": eager}, *inputs)


if __name__ == "__main__":
    program(main)
