"""Small LLaMA models on disk, written by the tests themselves, and what they answer by the formula in fp64."""

import json
import math
import struct
from pathlib import Path

import torch

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], padding: int = 0) -> None:
    """8 bytes of length, the header, the data; `padding` spaces behind the header put the data on odd addresses."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tiny(heads=4, kv_heads=2, head_dim=8, dim=32, layers=2, hidden=48, vocabulary=256, seed=0, **config):
    """(config.json, tensors) of a model with weights of a size that makes its answers differ from prompt to prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1]) * 2

    tensors = {
        "model.embed_tokens.weight": draw(vocabulary, dim),
        "model.norm.weight": 1 + draw(dim) / 2,
        "lm_head.weight": draw(vocabulary, dim),
    }
    for i in range(layers):
        rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        layer = {f"self_attn.{name}_proj": draw(count, dim) for name, count in rows.items()}
        layer |= {
            "self_attn.o_proj": draw(dim, heads * head_dim),
            "mlp.gate_proj": draw(hidden, dim),
            "mlp.up_proj": draw(hidden, dim),
            "mlp.down_proj": draw(dim, hidden),
            "input_layernorm": 1 + draw(dim) / 2,
            "post_attention_layernorm": 1 + draw(dim) / 2,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        **config,
    }, tensors


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor], files: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    for i in range(files):
        part = {name: tensors[name] for name in names[i::files]}
        write_safetensors(folder / f"model-{i + 1:05}-of-{files:05}.safetensors", part, padding=i)
    return folder


def logits(config: dict, tensors: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """[seqlen, vocabulary] in fp64: the whole text at once, every product and sum spelled out."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    position = torch.arange(len(tokens), dtype=torch.float64)
    half = head_dim // 2
    angle = torch.outer(position, config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half))
    hidden_keys = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight

    def turn(x):  # [seqlen, heads, head_dim]
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(config["num_hidden_layers"]):

        def weight(name, i=i):
            return w[f"model.layers.{i}.{name}.weight"]

        n = norm(x, weight("input_layernorm"))
        q, k, v = ((n @ weight(f"self_attn.{p}_proj").T).unflatten(-1, (-1, head_dim)) for p in "qkv")
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (turn(k), v))
        scores = torch.einsum("qhd,khd->hqk", turn(q), k) / math.sqrt(head_dim)
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden_keys, -math.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ weight("self_attn.o_proj").T
        n = norm(x, weight("post_attention_layernorm"))
        gate, up = n @ weight("mlp.gate_proj").T, n @ weight("mlp.up_proj").T
        x = x + (gate * gate.sigmoid() * up) @ weight("mlp.down_proj").T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


def greedy(config: dict, tensors: dict[str, torch.Tensor], prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(config, tensors, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
