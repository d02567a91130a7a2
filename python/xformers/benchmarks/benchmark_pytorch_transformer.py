"""An encoder of the factory against nn.TransformerEncoder in eager mode: training steps."""

import torch
from torch import nn

from xformers.factory import xFormer
from xformers.helpers.training import program

from ._sides import bytes_kept, compiled, parser_of, report_of, seconds_of, training_step


def ours(dim: int, heads: int, layers: int, dropout: float) -> nn.Module:
    """Post-norm, relu, hidden width 4 dim, as nn.TransformerEncoderLayer has by default."""
    return xFormer(
        {
            "block_type": "encoder",
            "dim_model": dim,
            "num_layers": layers,
            "residual_norm_style": "post",
            "multi_head_config": {
                "num_heads": heads,
                "residual_dropout": dropout,
                "attention": {"name": "scaled_dot_product", "dropout": dropout, "causal": False},
            },
            "feedforward_config": {
                "name": "MLP",
                "dropout": dropout,
                "activation": "relu",
                "hidden_layer_multiplier": 4,
            },
        }
    )


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--compiled", action="store_true", help="also torch.compile of PyTorch's layers")
    options = parser.parse_args(arguments)
    with report_of(options) as report:
        factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        batch, seqlen, dim, heads, layers = options.batch, 257, 384, 6, options.layers
        if options.smoke:
            batch, seqlen, dim, layers = 2, 9, 48, 2
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, options.dropout, batch_first=True)
        sides = {
            "ours": ours(dim, heads, layers, options.dropout).to(**factory),
            "eager": nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(**factory),
        }
        if options.compiled:
            sides["compiled"] = compiled(sides["eager"])
        x = torch.randn(batch, seqlen, dim, requires_grad=True, **factory)
        times = seconds_of({k: training_step(m, x) for k, m in sides.items()}, options.samples)
        kept = {k: bytes_kept(m, x) for k, m in sides.items()}
        report.row(f"{layers} layers, {batch} x {seqlen} x {dim}", times, kept)


if __name__ == "__main__":
    program(main)
