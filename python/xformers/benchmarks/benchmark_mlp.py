"""MLP and FusedMLP against the same layers in eager PyTorch, forward and backward."""

import argparse

import torch
from torch import nn

from xformers.components import Activation, build_activation
from xformers.components.feedforward import MLP, FusedMLP
from xformers.helpers.training import program

from ._sides import bytes_kept, compiled, parser_of, report_of, seconds_of, training_step

SHAPES = [(8, 256, 512), (8, 512, 1024), (4, 1024, 1024), (2, 2048, 2048), (1, 2048, 4096), (1, 1024, 12288)]


def eager(dim: int, activation: str, dropout: float, bias: bool, tanh_form: bool) -> nn.Sequential:
    """PyTorch's own layers."""
    act = nn.GELU(approximate="tanh") if activation == "gelu" and tanh_form else build_activation(activation)
    layers = (nn.Linear(dim, 4 * dim, bias=bias), act, nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(4 * dim, dim, bias=bias), nn.Dropout(dropout))


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--activations", nargs="+", choices=[a.value for a in Activation], default=["gelu"])
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--largest", type=int, default=12288, help="width of the largest row")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile of PyTorch's layers")
    options = parser.parse_args(arguments)
    with report_of(options) as report:
        factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        shapes = [(2, 16, 32)] if options.smoke else [s for s in SHAPES if s[2] <= options.largest]
        for activation in options.activations:
            for cls in (MLP, FusedMLP):
                for shape in shapes:
                    x = torch.randn(shape, requires_grad=True, **factory)
                    sides: dict[str, nn.Module] = {
                        "ours": cls(shape[2], options.dropout, activation, 4, bias=options.bias).to(**factory),
                        "eager": eager(shape[2], activation, options.dropout, options.bias, cls is FusedMLP).to(
                            **factory
                        ),
                    }
                    if options.compiled:
                        sides["compiled"] = compiled(sides["eager"])
                    times = seconds_of({k: training_step(m, x) for k, m in sides.items()}, options.samples)
                    kept = {k: bytes_kept(m, x) for k, m in sides.items()}
                    report.row(f"{cls.__name__} {activation} {'x'.join(map(str, shape))}", times, kept)


if __name__ == "__main__":
    program(main)
