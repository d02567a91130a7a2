"""A GPT of the factory learns text byte by byte, and writes more of it; the model of examples/microgpt in Python."""

import torch
from text.language import VOCABULARY, language_parser, train_language_model
from torch import nn
from xformers.components.attention import ATTENTION_REGISTRY
from xformers.factory import xFormer
from xformers.helpers.training import program

parser = language_parser(__doc__, max_epochs=1, batch=128, ref_batch=512, learning_rate=6e-4)
model = parser.add_argument_group("model")
model.add_argument("--attention", choices=sorted(ATTENTION_REGISTRY), default="scaled_dot_product")
model.add_argument("--n_embd", type=int, default=512)
model.add_argument("--block_size", type=int, default=128, help="bytes that a prediction may look back on")
model.add_argument("--n_layer", type=int, default=8)
model.add_argument("--n_head", type=int, default=8)
model.add_argument("--hidden_layer_multiplier", type=int, default=4)
for name in ("resid_pdrop", "attn_pdrop", "mlp_pdrop"):
    model.add_argument(f"--{name}", type=float, default=0.1)
options = parser.parse_args()
if options.smoke:
    options.n_embd, options.n_layer, options.n_head, options.block_size = 64, 2, 2, 64
    options.batch, options.ref_batch, options.learning_rate, options.steps = 32, 32, 4e-3, options.steps or 120
    options.size, options.evals, options.sample_bytes = 400_000, 2, 100
    options.resid_pdrop = options.attn_pdrop = options.mlp_pdrop = 0.0


class GPT(nn.Module):
    """int64 [batch, seqlen <= block_size] to logits [batch, seqlen, 256]."""

    def __init__(self):
        super().__init__()
        dim, length = options.n_embd, options.block_size
        attention = {"name": options.attention, "dropout": options.attn_pdrop, "causal": True, "seq_len": length}
        encoder = {
            "block_type": "encoder",
            "num_layers": options.n_layer,
            "dim_model": dim,
            "residual_norm_style": "post",
            "position_encoding_config": {"name": "vocab", "seq_len": length, "vocab_size": VOCABULARY, "dropout": 0.0},
            "multi_head_config": {"num_heads": options.n_head, "residual_dropout": options.resid_pdrop,
                                  "use_rotary_embeddings": True, "attention": attention},
            "feedforward_config": {"name": "MLP", "dropout": options.mlp_pdrop, "activation": "gelu",
                                   "hidden_layer_multiplier": options.hidden_layer_multiplier},
        }  # fmt: skip
        self.encoder = xFormer([encoder], weight_init="small")
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, VOCABULARY, bias=False))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(tokens))


program(lambda: train_language_model(options, GPT, "microGPT"))
