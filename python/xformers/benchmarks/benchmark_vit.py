"""A vision transformer of the factory beside a plain one of nn.TransformerEncoder, or timm's: steps on drawn images."""

import torch
import torch.nn.functional as F
from torch import nn

from xformers.factory import xFormer
from xformers.helpers.generated_images import draw_shapes
from xformers.helpers.timm_sparse_attention import TimmSparseAttention
from xformers.helpers.training import UserError, program

from ._sides import parser_of, report_of, seconds_of


class Plain(nn.Module):
    """Patches, positions, layers of nn.TransformerEncoder, the mean."""

    def __init__(self, trunk: nn.Module, dim: int, patch: int, size: int, first: nn.Module | None):
        super().__init__()
        self.patches = first
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2, dim)) if first is not None else None
        self.trunk, self.head = trunk, nn.Linear(dim, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.patches is not None:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        out: torch.Tensor = self.head(self.trunk(x).mean(1))
        return out


def of_the_factory(dim: int, heads: int, layers: int, patch: int, size: int) -> nn.Module:
    tokens = (size // patch) ** 2
    trunk = xFormer(
        {
            "block_type": "encoder",
            "dim_model": dim,
            "num_layers": layers,
            "residual_norm_style": "pre",
            "patch_embedding_config": {"in_channels": 3, "kernel_size": patch, "stride": patch},
            "position_encoding_config": {"name": "learnable", "seq_len": tokens, "add_class_token": False},
            "multi_head_config": {"num_heads": heads, "attention": {"name": "scaled_dot_product", "dropout": 0.0}},
            "feedforward_config": {
                "name": "MLP",
                "activation": "gelu",
                "dropout": 0.0,
                "hidden_layer_multiplier": 4,
            },
        }
    )
    return Plain(trunk, dim, patch, size, None)


def of_timm(dim: int, heads: int, layers: int, patch: int, size: int, ours: bool) -> nn.Module:
    try:
        from timm.models.vision_transformer import VisionTransformer  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError("timm is not installed.  Fix: pip install timm, or leave --timm out") from error
    model: nn.Module = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=dim, depth=layers, num_heads=heads, num_classes=10
    )
    if ours:
        for block in model.blocks:  # type: ignore[union-attr]
            attention = TimmSparseAttention(dim, heads, qkv_bias=True)
            attention.load_state_dict(block.attn.state_dict())
            block.attn = attention
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--timm", action="store_true", help="timm's ViT, with TimmSparseAttention beside its own")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args(arguments)
    dim, heads, layers, patch = 384, 6, options.layers, 4
    size, batch = options.image_size, options.batch
    if options.smoke:
        dim, heads, layers, size, batch = 32, 2, 2, 16, 2
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    images, labels = draw_shapes(batch, 0, size)
    x, labels = images.to(**factory) / 255, labels.to(options.device)
    with report_of(options) as report:
        if options.timm:
            sides = {side: of_timm(dim, heads, layers, patch, size, side == "ours") for side in ("ours", "timm")}
        else:
            layer = nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
            )
            trunk = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
            sides = {
                "ours": of_the_factory(dim, heads, layers, patch, size),
                "plain": Plain(trunk, dim, patch, size, nn.Conv2d(3, dim, patch, patch)),
            }

        def step_of(model: nn.Module):  # type: ignore[no-untyped-def]
            def step() -> None:
                F.cross_entropy(model(x).float(), labels).backward()
                model.zero_grad(set_to_none=True)

            return step

        times = seconds_of({name: step_of(model.to(**factory)) for name, model in sides.items()}, options.samples)
        report.row(f"{layers} layers, {batch} images of {size} x {size}", times)


if __name__ == "__main__":
    program(main)
