"""Encoders of the factory by attention and feed-forward: training steps."""

import torch

from xformers.components.attention import ATTENTION_REGISTRY
from xformers.components.feedforward import FEEDFORWARD_REGISTRY
from xformers.factory import xFormer
from xformers.helpers.training import program

from ._sides import bytes_kept, parser_of, report_of, seconds_of, training_step


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--attentions", nargs="+", choices=sorted(ATTENTION_REGISTRY), default=["scaled_dot_product", "nystrom"]
    )
    parser.add_argument("--feedforwards", nargs="+", choices=sorted(FEEDFORWARD_REGISTRY), default=["MLP", "FusedMLP"])
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args(arguments)
    with report_of(options) as report:
        factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        shape = (2, 16, 32) if options.smoke else (4, 1024, 384)
        x = torch.randn(shape, requires_grad=True, **factory)
        for feedforward in options.feedforwards:
            models = {}
            for attention in options.attentions:
                models[attention] = xFormer(
                    {
                        "block_type": "encoder",
                        "dim_model": shape[2],
                        "num_layers": options.layers,
                        "residual_norm_style": "pre",
                        "multi_head_config": {
                            "num_heads": 4,
                            "attention": {"name": attention, "dropout": 0.0, "seq_len": shape[1], "causal": False},
                        },
                        "feedforward_config": {
                            "name": feedforward,
                            "dropout": 0.0,
                            "activation": "gelu",
                            "hidden_layer_multiplier": 4,
                            "number_of_experts": 4,
                            "gate": "top_2",
                        },
                    }
                ).to(**factory)
            times = seconds_of({k: training_step(m, x) for k, m in models.items()}, options.samples)
            report.row(feedforward, times, {k: bytes_kept(m, x) for k, m in models.items()})


if __name__ == "__main__":
    program(main)
