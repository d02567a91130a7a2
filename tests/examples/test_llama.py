"""The llama example: a cache changes nothing, whatever its layout; and files that are not as they should be."""

import json
import struct

import llama_model
import pytest
import torch

PROMPTS = ([7, 3, 250], [9], list(range(40, 77)))


@pytest.fixture
def run(llama, tmp_path):
    """Tokens behind each prompt."""

    def go(model, *options, prompts=PROMPTS, count=24):
        asked = [word for p in prompts for word in ("--prompt-tokens", ",".join(map(str, p)))]
        llama.succeeds("--model", model, *asked, "--tokens", count, "--device", "cpu", "--temperature", 0, *options,
                       "--report", tmp_path / "report.json")  # fmt: skip
        return json.loads((tmp_path / "report.json").read_text())

    return go


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_the_formula(run, tmp_path, kv_heads):
    config, tensors = llama_model.tiny(kv_heads=kv_heads)
    model = llama_model.write(tmp_path / "model", config, tensors)
    expected = [llama_model.greedy(config, tensors, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(e) for e in expected}) == len(PROMPTS)  # the model does look at its prompts
    for cache in ((), ("--page-size", 1), ("--page-size", 16), ("--capacity", 100)):
        report = run(model, "--verify", *cache)
        assert report["tokens"] == expected, cache
        assert report["verified"] == 24 * len(PROMPTS)
        assert report["prefill"]["tokens"] == sum(map(len, PROMPTS))
        assert report["generation"]["tokens"] == 23 * len(PROMPTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 16, "heads": 2, "kv_heads": 1},
        {"rope_theta": 500.0},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"vocabulary": 300, "dim": 40},
    ],
    ids=["wide heads", "theta", "theta of new files", "odd sizes"],
)
def test_other_sizes(run, tmp_path, changes):
    config, tensors = llama_model.tiny(**changes)
    model = llama_model.write(tmp_path / "model", config, tensors, files=3)
    formula = {**config, "rope_theta": config["rope_theta"] or config["rope_parameters"]["rope_theta"]}
    assert run(model, count=8)["tokens"] == [llama_model.greedy(formula, tensors, p, 8) for p in PROMPTS]


def test_without_a_head_the_embedding_is_it(run, tmp_path):
    config, tensors = llama_model.tiny()
    del tensors["lm_head.weight"]
    model = llama_model.write(tmp_path / "model", config, tensors)
    assert run(model, count=8)["tokens"] == [llama_model.greedy(config, tensors, p, 8) for p in PROMPTS]


@pytest.mark.parametrize("stretched", ["linear", "llama3"])
def test_stretched_positions_change_the_text_and_verify(run, tmp_path, stretched):
    scaling = {"rope_type": stretched, "factor": 8.0}
    if stretched == "llama3":
        scaling |= {"original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config, tensors = llama_model.tiny(rope_scaling=scaling)
    model = llama_model.write(tmp_path / "model", config, tensors)
    assert run(model, "--verify")["tokens"] != [llama_model.greedy(config, tensors, p, 24) for p in PROMPTS]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights(run, tmp_path, dtype):
    config, tensors = llama_model.tiny()
    kept = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    model = llama_model.write(tmp_path / "model", config, kept, files=2)
    report = run(model, "--dtype", "float32")  # read from 16 bits, computed in 32
    assert report["tokens"] == [llama_model.greedy(config, kept, p, 24) for p in PROMPTS]
    padded, paged = run(model, "--dtype", dtype), run(model, "--dtype", dtype, "--page-size", 4)
    assert padded["dtype"] == dtype and [len(t) for t in padded["tokens"]] == [24] * 3
    assert padded["tokens"] == paged["tokens"]


def test_texts_end_at_their_end_token(run, tmp_path):
    config, tensors = llama_model.tiny()
    expected = [llama_model.greedy(config, tensors, prompt, 24) for prompt in PROMPTS]
    ends = [expected[0][5], expected[1][11], expected[2][3]]
    model = llama_model.write(tmp_path / "model", {**config, "eos_token_id": ends}, tensors)

    def cut(tokens):
        return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]

    report = run(model, "--verify")
    assert report["tokens"] == [cut(e) for e in expected]
    assert report["generation"]["tokens"] <= 11 * 3  # nothing is computed when all have ended


def test_sampling(run, tmp_path):
    config, tensors = llama_model.tiny()
    model = llama_model.write(tmp_path / "model", config, tensors)

    def draw(*options):
        return run(model, "--temperature", 1.5, *options)["tokens"]

    assert draw("--seed", 3) == draw("--seed", 3) != draw("--seed", 4)
    assert draw("--top-p", 0) == run(model)["tokens"]  # the likeliest alone
    # Every token is among those that top_p leaves.
    for prompt, tokens in zip(PROMPTS, draw("--top-p", 0.5), strict=True):
        chance = (llama_model.logits(config, tensors, prompt + tokens)[len(prompt) - 1 : -1] / 1.5).softmax(-1)
        for row, token in zip(chance, tokens, strict=True):
            assert row[row > row[token]].sum() <= 0.5 + 1e-4


def test_checkpoint_of_microgpt(run, llama, microgpt, train, tmp_path):
    checkpoint = tmp_path / "model.ckpt"
    microgpt.succeeds(*train, "--steps", 60, "--checkpoint", checkpoint)
    prompts = [list(b"atten"), list(b"k")]
    padded = run(checkpoint, "--verify", prompts=prompts, count=20)
    assert padded["verified"] == 40
    assert run(checkpoint, "--page-size", 4, prompts=prompts, count=20)["tokens"] == padded["tokens"]
    # The same text as microgpt's own, which has no cache.
    own = microgpt.succeeds("sample", "--checkpoint", checkpoint, "--prompt", "atten", "--bytes", 20,
                            "--temperature", 0, "--device", "cpu")  # fmt: skip
    assert own == "atten" + bytes(padded["tokens"][0]).decode() + "\n"
    said = llama.succeeds(
        "--model", checkpoint, "--prompt", "atten", "--tokens", 20, "--temperature", 0, "--device", "cpu"
    )
    assert own in said


@pytest.mark.parametrize(
    "options, says",
    [
        (("--prompt-tokens", "1,2,3", "--capacity", 10, "--tokens", 20), "the longest prompt has 3 tokens"),
        (("--prompt-tokens", "1,256"), "prompt 1 has the token 256, the model knows 0 to 255"),
        (("--prompt-tokens", "1,x"), "--prompt-tokens has 'x'"),
        (("--prompt-tokens", "1", "--verify"), "Fix: pass --temperature 0"),
        (("--prompt", ""), "prompt 1 is empty"),
        (("--top-p", "2"), "--top-p"),
    ],
    ids=["capacity", "token", "numbers", "verify", "empty", "range"],
)
def test_wrong_options(llama, tmp_path, options, says):
    model = llama_model.write(tmp_path / "model", *llama_model.tiny())
    assert says in llama.fails("--model", model, "--device", "cpu", *options)


def damaged(folder, damage):
    """A model whose only file of weights went through `damage(header, data) -> (header, data)`."""
    llama_model.write(folder, *llama_model.tiny())
    (file,) = folder.glob("*.safetensors")
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = damage(json.loads(raw[8 : 8 + size]), raw[8 + size :])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def renamed(header, data):
    header["other"] = header.pop("model.norm.weight")
    return header, data


def reshaped(header, data):
    header["model.norm.weight"]["shape"] = [64]
    return header, data


def retyped(header, data):
    header["model.norm.weight"]["dtype"] = "Q4"
    return header, data


def halved(header, data):
    header["model.norm.weight"]["dtype"] = "F16"
    header["model.norm.weight"]["shape"] = [64]
    return header, data


def negative(header, data):
    header["model.norm.weight"]["shape"] = [-32]
    return header, data


def huge(header, data):
    header["model.norm.weight"]["shape"] = [1 << 62, 1 << 62]
    return header, data


def without_offsets(header, data):
    del header["model.norm.weight"]["data_offsets"]
    return header, data


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda h, d: (h, d[:-5]), "the file is cut short"),
        (lambda h, d: (b"{" * 100, d), "its header is no JSON object"),
        (lambda h, d: (b"[1, 2]", d), "its header is no JSON object"),
        (renamed, "has no tensor 'model.norm.weight', expected [32]"),
        (reshaped, "tensor 'model.norm.weight' has data_offsets"),
        (retyped, "tensor 'model.norm.weight' has the dtype Q4"),
        (halved, "tensor 'model.norm.weight' is Half [64], expected floating-point numbers [32]"),
        (negative, "tensor 'model.norm.weight' has the shape [-32]"),
        (huge, "tensor 'model.norm.weight' has the shape"),
        (without_offsets, "tensor 'model.norm.weight' has no dtype, shape and data_offsets"),
    ],
    ids=["cut", "no JSON", "list", "name", "size", "dtype", "shape", "negative", "huge", "offsets"],
)
def test_damaged_weights(llama, tmp_path, damage, says):
    assert says in llama.fails("--model", damaged(tmp_path / "model", damage), "--prompt-tokens", 1, "--device", "cpu")


@pytest.mark.parametrize(
    "content", [b"", b"\x01", b"\xff" * 8, b"\xff" * 200], ids=["empty", "byte", "length", "noise"]
)
def test_no_safetensors(llama, tmp_path, content):
    model = llama_model.write(tmp_path / "model", *llama_model.tiny())
    (file,) = model.glob("*.safetensors")
    file.write_bytes(content)
    assert "is no safetensors file" in llama.fails("--model", model, "--prompt-tokens", 1, "--device", "cpu")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"num_key_value_heads": 3}, "'num_key_value_heads' is 3, expected a divisor of 4 heads"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": "wide"}, "'hidden_size' is \"wide\", expected a whole number"),
        ({"num_hidden_layers": 3}, "has no tensor 'model.layers.2.input_layernorm.weight'"),
        ({"hidden_act": "gelu"}, "'hidden_act' is \"gelu\""),
        ({"attention_bias": True}, "'attention_bias' is true"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'rope_scaling' is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'rope_scaling.factor' is not there"),
        ({"eos_token_id": "end"}, "'eos_token_id' is \"end\""),
    ],
    ids=lambda value: str(*value) if isinstance(value, dict) else "",
)
def test_odd_configs(llama, tmp_path, change, says):
    config, tensors = llama_model.tiny()
    model = llama_model.write(tmp_path / "model", {**config, **change}, tensors)
    assert says in llama.fails("--model", model, "--prompt-tokens", 1, "--device", "cpu")


def test_missing_files(llama, tmp_path):
    assert "cannot open" in llama.fails("--model", tmp_path / "nothing", "--prompt", "a", "--device", "cpu")
    assert "config.json" in llama.fails("--model", tmp_path, "--prompt", "a", "--device", "cpu")
    (tmp_path / "config.json").write_text("{}")
    assert "has no 'num_hidden_layers'" in llama.fails("--model", tmp_path, "--prompt", "a", "--device", "cpu")
    (tmp_path / "config.json").write_text(json.dumps(llama_model.tiny()[0]))
    assert "has no *.safetensors" in llama.fails("--model", tmp_path, "--prompt", "a", "--device", "cpu")
