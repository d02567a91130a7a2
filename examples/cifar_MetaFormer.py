"""A hierarchical classifier of images, four stages of fewer and wider tokens: Poolformer, VAN, or with attention."""

import torch
from torch import nn
from vision.classify import train_classifier, vision_parser
from xformers.components.feedforward import FEEDFORWARD_REGISTRY
from xformers.factory import xFormer
from xformers.helpers.hierarchical_configs import BasicLayerConfig, get_hierarchical_configuration
from xformers.helpers.training import program

parser = vision_parser(__doc__, max_epochs=50, batch=256, ref_batch=768, learning_rate=5e-3)
model = parser.add_argument_group("model")
model.add_argument("--attention", choices=["scaled_dot_product", "pooling", "visual"], default="pooling",
                   help="pooling: a Poolformer; visual, with --feedforward Conv2DFeedforward: a VAN")  # fmt: skip
model.add_argument("--feedforward", choices=sorted(FEEDFORWARD_REGISTRY), default="MLP")
model.add_argument("--embeddings", type=int, nargs=4, default=[64, 128, 320, 512], metavar="DIM")
model.add_argument("--repeat_layers", type=int, nargs=4, default=[1, 1, 1, 1], metavar="N", help="layers of a stage")
model.add_argument("--residual_norm_style", choices=["pre", "post"], default="pre")
model.add_argument("--use_rotary_embeddings", type=int, choices=[0, 1], default=1)
options = parser.parse_args()
if options.smoke:
    options.embeddings, options.learning_rate = [32, 32, 64, 64], 4e-3
    options.max_epochs = 1 if options.attention == "visual" else 2
    options.batch, options.ref_batch = 64, 64


class MetaFormer(nn.Module):
    """Images through four stages, the mean of the last tokens to logits [batch, classes]."""

    def __init__(self, classes: int):
        super().__init__()
        stages = [
            BasicLayerConfig(
                embedding=dim,
                attention_mechanism=options.attention,
                patch_size=3,
                stride=2,
                padding=1,
                seq_len=32**2 // 4 ** (i + 1),
                feedforward=options.feedforward,
                repeat_layer=repeat,
            )
            for i, (dim, repeat) in enumerate(zip(options.embeddings, options.repeat_layers, strict=True))
        ]
        rotary = bool(options.use_rotary_embeddings)
        configs = get_hierarchical_configuration(stages, options.residual_norm_style, rotary, dim_head=32)
        self.trunk = xFormer(configs, weight_init="moco")
        self.head = nn.Sequential(nn.LayerNorm(options.embeddings[-1]), nn.Linear(options.embeddings[-1], classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images).mean(1))


program(lambda: train_classifier(options, MetaFormer, "cifar_MetaFormer"))
