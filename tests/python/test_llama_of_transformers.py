"""The llama example reads what transformers writes, and gives its tokens."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
PROMPTS = ([7, 3, 250], [9], list(range(40, 77)))


@pytest.mark.parametrize("kv_heads, tied, rope", [(4, False, None), (2, True, None), (1, False, "llama3")])
def test_same_tokens(tmp_path, kv_heads, tied, rope):
    torch.manual_seed(0)
    scaling = {"rope_type": "default", "rope_theta": 10000.0}
    if rope:
        scaling = {"rope_type": rope, "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads, intermediate_size=96,
        vocab_size=300, tie_word_embeddings=tied, max_position_embeddings=256, initializer_range=0.3,
        rope_parameters=scaling, eos_token_id=None, bos_token_id=None, pad_token_id=None)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    expected = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(20):
                tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
        expected.append(tokens[0, len(prompt) :].tolist())

    program = Path(os.environ["XFORMERS_BUILD_DIR"]) / "bin/llama"
    asked = [word for p in PROMPTS for word in ("--prompt-tokens", ",".join(map(str, p)))]
    for cache in ([], ["--page-size", "16"]):
        subprocess.run([program, "--model", tmp_path / "model", *asked, "--tokens", "20", "--temperature", "0",
                        "--device", "cpu", "--report", tmp_path / "report.json", *cache], check=True)  # fmt: skip
        assert json.loads((tmp_path / "report.json").read_text())["tokens"] == expected
