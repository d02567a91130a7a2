"""From the layout of LLaMA's authors, weights split over ranks, to the public one that examples/llama reads."""

import json
import math
import pickle
import struct
from pathlib import Path

import torch
from xformers.helpers.training import UserError
from xformers.helpers.training.files import write_atomically

# Names in a file -> names in the public layout, and the dimension along which ranks split the tensor.
WHOLE = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", 1),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
LAYER = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def hidden_dim(params: dict) -> int:
    """Of the feed-forward: 2/3 of 4 dim, times the multiplier, rounded up."""
    multiple = params.get("multiple_of", 256)
    hidden = int((params.get("ffn_dim_multiplier") or 1.0) * int(2 * 4 * params["dim"] / 3))
    return multiple * math.ceil(hidden / multiple)


def read_params(folder: Path) -> dict:
    try:
        params = json.loads((folder / "params.json").read_text())
        for key in ("dim", "n_layers", "n_heads"):
            if not isinstance(params[key], int):
                raise ValueError(f"{key} is {params[key]!r}")
        return params
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/params.json: {error!r}, expected dim, n_layers, n_heads.  Fix: name the folder of a LLaMA model"
        ) from error


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head in pairs (2j, 2j + 1), which are turned together -> in pairs (j, j + head_dim / 2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def converted(folder: Path, tokenizer) -> Path:
    """The folder in the public layout, made where it is missing or older than a file of the model."""
    params = read_params(folder)
    files = sorted(folder.glob("*.pth"))
    if not files:
        raise UserError(f"{folder} has no *.pth.  Fix: name the folder of a LLaMA model")
    target = folder / "xformers"
    made = target / "model.safetensors"
    if made.exists() and made.stat().st_mtime > max(f.stat().st_mtime for f in (*files, folder / "params.json")):
        return target
    ranks = []
    for file in files:
        try:
            ranks.append(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            raise UserError(f"{file} is damaged or no file of weights.  Fix: fetch it again") from error

    def whole(name: str, dim: int | None) -> torch.Tensor:
        for file, rank in zip(files, ranks, strict=True):
            if not isinstance(rank, dict) or name not in rank:
                raise UserError(f"{file} has no {name}.  Fix: name the folder of a LLaMA model of {len(files)} ranks")
        return ranks[0][name] if dim is None else torch.cat([rank[name] for rank in ranks], dim)

    tensors = {to: whole(name, dim) for name, (to, dim) in WHOLE.items()}
    for i in range(params["n_layers"]):
        for name, (to, dim) in LAYER.items():
            tensors[f"model.layers.{i}.{to}.weight"] = whole(f"layers.{i}.{name}.weight", dim)
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    head_dim = params["dim"] // heads
    for i in range(params["n_layers"]):
        for name, count in (("q", heads), ("k", kv_heads)):
            key = f"model.layers.{i}.self_attn.{name}_proj.weight"
            if tensors[key].shape != (count * head_dim, params["dim"]):
                raise UserError(
                    f"{folder}: {name} of layer {i} is {list(tensors[key].shape)}, expected "
                    f"{[count * head_dim, params['dim']]} by params.json.  Fix: the params.json of this model"
                )
            tensors[key] = halves(tensors[key], count)
    config = {
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 1e4),
        "max_position_embeddings": params.get("max_seq_len", 4096),
        "hidden_act": "silu",
        "eos_token_id": tokenizer.eos_id,
    }
    if config["intermediate_size"] != hidden_dim(params):
        raise UserError(
            f"{folder}: the feed-forward is {config['intermediate_size']} wide, expected {hidden_dim(params)} by "
            "params.json.  Fix: the params.json of this model"
        )
    write_atomically(target / "config.json", json.dumps(config, indent=1).encode())
    write_atomically(made, safetensors(tensors))
    return target


def safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """The length of a JSON header, the header, the tensors (https://huggingface.co/docs/safetensors)."""
    header, parts, at = {}, [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{name} is {tensor.dtype}, expected float32, bfloat16 or float16.  Fix: other weights")
        raw = tensor.contiguous().view(torch.uint8).numpy()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + raw.size],
        }
        at += raw.size
        parts.append(raw.tobytes())
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def write_random_model(folder: Path) -> Path:
    """A small model of bytes with random weights, in the authors' layout."""
    dim, layers, heads, kv_heads, vocabulary = 64, 2, 4, 2, 259
    params = {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads, "vocab_size": vocabulary}
    hidden, kv_dim = hidden_dim(params), dim * kv_heads // heads
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    tensors = {"tok_embeddings": draw(vocabulary, dim), "norm": torch.ones(dim), "output": draw(vocabulary, dim)}
    rows = {"wq": (dim, dim), "wk": (kv_dim, dim), "wv": (kv_dim, dim), "wo": (dim, dim)}
    widths = {"w1": (hidden, dim), "w3": (hidden, dim), "w2": (dim, hidden)}
    for i in range(layers):
        tensors |= {f"layers.{i}.attention.{name}": draw(*shape) for name, shape in rows.items()}
        tensors |= {f"layers.{i}.feed_forward.{name}": draw(*shape) for name, shape in widths.items()}
        tensors |= {f"layers.{i}.{name}": torch.ones(dim) for name in ("attention_norm", "ffn_norm")}
    torch.save({f"{name}.weight": tensor for name, tensor in tensors.items()}, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder
