"""examples/llama_inference: upstream's command line, the tokens of the C++ program."""

import json

import llama_model
import pytest
import torch
from python_programs import refused, run, smoke

PATH = "llama_inference/generate.py"
NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
PROMPTS = ["one", "a longer prompt"]


def authors_layout(folder, ranks, hidden=256):
    """The tests' small model as its authors would split it over ranks; (config, tensors) in the public layout."""
    config, tensors = llama_model.tiny(vocabulary=259, hidden=hidden, seed=3)
    heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))

    def interleaved(weight, count):  # row j of a head's first half and row j of the second, one after the other
        rows = []
        for h in range(count):
            head = weight[h * head_dim : (h + 1) * head_dim]
            for j in range(head_dim // 2):
                rows += [head[j], head[j + head_dim // 2]]
        return torch.stack(rows)

    theirs = {
        "tok_embeddings.weight": (tensors["model.embed_tokens.weight"], 1),
        "norm.weight": (tensors["model.norm.weight"], None),
        "output.weight": (tensors["lm_head.weight"], 0),
    }
    for i in range(config["num_hidden_layers"]):
        for ours, name in NAMES.items():
            tensor = tensors[f"model.layers.{i}.{ours}.weight"]
            if ours[10:11] in ("q", "k") and ours.startswith("self_attn"):
                tensor = interleaved(tensor, heads if ours[10] == "q" else kv_heads)
            dim = None if "norm" in name else 1 if name.endswith(("wo", "w2")) else 0
            theirs[f"layers.{i}.{name}.weight"] = (tensor, dim)
    folder.mkdir()
    for rank in range(ranks):
        part = {k: t.clone() if dim is None else t.chunk(ranks, dim)[rank].clone() for k, (t, dim) in theirs.items()}
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": heads, "n_kv_heads": kv_heads, "vocab_size": 259, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(params))
    return config, tensors


@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_of_the_formula(llama, ranks, tmp_path):
    config, tensors = authors_layout(tmp_path / "model", ranks)
    report = tmp_path / "report.json"
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    done = run(PATH, tmp_path / "model", *asked, "--no-instruction-tags", "--gen-length", 12, "--temperature", 0,
               "--device", "cpu", "--program", llama.program, "--report", report)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for prompt, tokens in zip(PROMPTS, json.loads(report.read_text())["tokens"], strict=True):
        expected = llama_model.greedy(config, tensors, [256, *prompt.encode()], 12)
        assert tokens == (expected[: expected.index(257)] if 257 in expected else expected)
    assert "tokens/s" in done.stdout


def test_smoke(llama, tmp_path):
    report, last = smoke(PATH, tmp_path / "report.json", "--program", llama.program)
    assert report["verified"] == sum(map(len, report["tokens"])) > 0
    assert all(prompt.startswith("[INST]") and prompt.endswith("[/INST]") for prompt in report["texts"])
    assert f"{report['verified']} tokens equal" in last


def test_wrong_folders(tmp_path):
    assert "params.json" in refused(PATH, tmp_path)
    authors_layout(tmp_path / "model", 1, hidden=48)  # not what params.json says
    assert "48 wide, expected 256" in refused(PATH, tmp_path / "model")
    file = tmp_path / "model" / "consolidated.00.pth"
    file.write_bytes(file.read_bytes()[:1000])
    assert "damaged" in refused(PATH, tmp_path / "model")
    file.unlink()
    assert "no *.pth" in refused(PATH, tmp_path / "model")
