"""A vision transformer learns to tell images apart: CIFAR-10, Fashion-MNIST, digits or drawn shapes, what is there."""

import torch
from torch import nn
from vision.classify import train_classifier, vision_parser
from xformers.components.attention import ATTENTION_REGISTRY
from xformers.components.feedforward import FEEDFORWARD_REGISTRY
from xformers.factory import xFormer
from xformers.helpers.training import program

parser = vision_parser(__doc__, max_epochs=30, batch=128, ref_batch=512, learning_rate=5e-4)
model = parser.add_argument_group("model")
model.add_argument("--attention", choices=sorted(ATTENTION_REGISTRY), default="scaled_dot_product")
model.add_argument("--feedforward", choices=sorted(FEEDFORWARD_REGISTRY), default="MLP")
model.add_argument("--patch_size", type=int, default=2)
model.add_argument("--dim", type=int, default=384)
model.add_argument("--n_layer", type=int, default=6)
model.add_argument("--n_head", type=int, default=6)
model.add_argument("--hidden_layer_multiplier", type=int, default=4)
model.add_argument("--residual_norm_style", choices=["pre", "post", "deepnorm"], default="pre")
model.add_argument("--use_rotary_embeddings", type=int, choices=[0, 1], default=1)
model.add_argument("--classifier", choices=["token", "gap"], default="token", help="a class token, or the mean")
options = parser.parse_args()
if options.smoke:
    options.patch_size, options.dim, options.n_layer, options.n_head = 4, 64, 2, 2
    options.max_epochs, options.batch, options.ref_batch, options.learning_rate = 3, 64, 64, 3e-3


class VisionTransformer(nn.Module):
    """Patches [batch, tokens, dim] through an encoder; the class token, or the mean, to logits [batch, classes]."""

    def __init__(self, classes: int):
        super().__init__()
        dim, patch, tokens = options.dim, options.patch_size, (32 // options.patch_size) ** 2
        with_token = options.classifier == "token"
        attention = {"name": options.attention, "dropout": 0.0, "causal": False, "seq_len": tokens + with_token}
        encoder = {
            "block_type": "encoder",
            "num_layers": options.n_layer,
            "dim_model": dim,
            "residual_norm_style": options.residual_norm_style,
            "patch_embedding_config": {"in_channels": 3, "kernel_size": patch, "stride": patch},
            "position_encoding_config": {"name": "learnable", "seq_len": tokens, "add_class_token": with_token},
            "multi_head_config": {"num_heads": options.n_head, "attention": attention,
                                  "use_rotary_embeddings": bool(options.use_rotary_embeddings)},
            "feedforward_config": {"name": options.feedforward, "activation": "gelu", "dropout": 0.0,
                                   "hidden_layer_multiplier": options.hidden_layer_multiplier},
        }  # fmt: skip
        self.encoder = xFormer([encoder])
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.encoder(images)
        return self.head(x[:, 0] if options.classifier == "token" else x.mean(1))


program(lambda: train_classifier(options, VisionTransformer, "cifar_ViT"))
