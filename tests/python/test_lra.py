"""xformers.benchmarks.LRA: the tasks are what they say, every attention runs on every task, results make a table."""

import json
import math
import re

import pytest
import torch
from xformers.benchmarks.LRA import batch_fetch_results, run_grid_search, run_tasks
from xformers.benchmarks.LRA.data import load_part
from xformers.benchmarks.LRA.model import SequenceClassifier
from xformers.benchmarks.LRA.settings import CONFIG, DEBUG, Task, attention_options, load_settings
from xformers.benchmarks.LRA.tasks import GENERATORS
from xformers.benchmarks.LRA.tasks.listops import listops_examples
from xformers.benchmarks.LRA.tasks.pathfinder import draw_pixels, pathfinder_examples
from xformers.helpers.training import UserError

TASKS = [task.value for task in Task]
MECHANISMS = ("scaled_dot_product", "nystrom", "linformer", "favor", "orthoformer", "lambda", "fourier_mix", "local",
              "global", "random", "compositional", "blocksparse")  # fmt: skip


def evaluated(ids):
    """Of an expression's ids, as text through Python's own parser: no code shared with the generator."""
    names = {11: "low(", 12: "high(", 13: "middle(", 14: "total(", 15: "),"}
    text = "".join(names.get(i, f"{i - 1},") for i in ids)

    def middle(*values):
        ordered = sorted(values)
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2

    functions = {"low": lambda *v: min(v), "high": lambda *v: max(v), "middle": middle, "total": lambda *v: sum(v) % 10}
    return eval(text.rstrip(","), functions)


def test_listops_is_what_it_is_defined_to_be():
    examples = listops_examples(60, 2048, seed=4)
    deepest = 0
    for example in examples:
        ids = [i for i in example["input_ids_0"].tolist() if i]
        assert 500 <= len(ids) <= 2000 and max(ids) < 32 and example["input_ids_0"].shape == (2048,)
        assert evaluated(ids) == int(example["label"])
        depth = 0
        for i in ids:
            depth += (11 <= i <= 14) - (i == 15)
            deepest = max(deepest, depth)
    assert 3 < deepest <= 10
    assert len({tuple(e["input_ids_0"].tolist()) for e in examples}) == 60
    again = listops_examples(60, 2048, seed=4)
    assert all(torch.equal(a["input_ids_0"], b["input_ids_0"]) for a, b in zip(examples, again, strict=True))


@pytest.mark.parametrize("length", [6, 9, 14])
def test_pathfinder_joins_the_dots_or_not(length, monkeypatch):
    from xformers.benchmarks.LRA.tasks import pathfinder

    scenes = []

    def drawn(curves, dots, side):
        scenes.append((curves, dots))
        return draw_pixels(curves, dots, side)

    monkeypatch.setattr(pathfinder, "draw_pixels", drawn)
    examples = pathfinder_examples(12, 1024, 3, length)
    assert {int(example["label"]) for example in examples} == {0, 1}
    for example, (curves, dots) in zip(examples, scenes, strict=True):
        ends = [{curve[0], curve[-1]} for curve in curves if len(curve) == length]
        assert len(ends) == 2
        assert any(set(dots) == both for both in ends) == bool(example["label"])
        for curve in curves:  # one dash follows the other, and nothing touches another curve
            assert all(math.dist(a[:2], b[:2]) < 2.71 for a, b in zip(curve, curve[1:], strict=False))
            for other in curves:
                assert other is curve or min(math.dist(a[:2], b[:2]) for a in curve for b in other) >= 2.3
        pixels = example["input_ids_0"].view(32, 32)
        assert pixels.min() == 1 and pixels.max() <= 255
        for x, y, _ in dots:
            assert pixels[int(y), int(x)] == 255


@pytest.mark.parametrize("task", TASKS)
def test_data_of_every_task(task):
    settings = load_settings(task, None)
    common = settings["model"]["common"]
    examples = GENERATORS[task](24, common["seq_len"], 5)
    labels = {int(example["label"]) for example in examples}
    assert labels <= set(range(settings["model"]["num_classes"])) and len(labels) > 1
    for example in examples:
        assert ("input_ids_1" in example) == settings["model"]["dual"]
        ids = example["input_ids_0"]
        assert ids.shape == (common["seq_len"],) and 0 < ids.max() < common["vocab_size"] - 1


def test_settings():
    """The table of the published setting, by task: seq_len, dim, heads, layers, batch, steps, warm-up, pooling."""
    rows = {
        "text": (4096, 256, 4, 4, 32, 20000, 8000, "cls"),
        "listops": (2048, 64, 2, 2, 32, 10000, 1000, "mean"),
        "retrieval": (4096, 64, 2, 2, 32, 30000, 800, "mean"),
        "image": (1024, 64, 2, 2, 256, 35000, 175, "mean"),
        "pathfinder32-curv_contour_length_9": (1024, 64, 2, 2, 256, 62400, 312, "mean"),
    }
    for task, row in rows.items():
        s = load_settings(task, None)
        c, t = s["model"]["common"], s["training"]
        batch = t["batch_size"] * t["gradient_accumulation"]
        sizes = (c["seq_len"], c["dim_model"], c["num_heads"], c["num_layers"])
        assert (*sizes, batch, t["num_train_steps"], t["warmup"], s["model"]["pooling_mode"]) == row
    for settings in ({"model": {"extra_settings": {"attention": {"favor": {"a": 1}}}}},
                     {"model": {}, "extra_settings": {"attention": {"favor": {"a": 1}}}}):  # fmt: skip
        assert attention_options(settings, "favor") == {"a": 1}


@pytest.mark.parametrize("task", TASKS)
def test_every_attention_on_every_task(task, tmp_path, capsys):
    common = ["--debug", "--device", "cpu", "--checkpoint_dir", str(tmp_path), "--datasets", str(tmp_path / "none")]
    # The variants of pathfinder differ in their pictures alone.
    mechanisms = MECHANISMS[:2] if "length" in task else MECHANISMS
    run_grid_search.main(["--task", task, "--attention", *mechanisms, *common])
    results = batch_fetch_results.collected(tmp_path)
    assert {attention for _, attention in results} == set(mechanisms)
    summary = json.loads((tmp_path / f"{task}__nystrom" / "test_eval_summary.json").read_text())
    assert summary["train_steps"] == 3 and 0 <= summary["test_accu_mean"] <= 1 and not summary["comparable"]
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    batch_fetch_results.main(["--checkpoint_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert f"{100 * summary['test_accu_mean']:.2f} *" in shown and "not comparable" in shown


def test_padding_changes_nothing():
    """Tokens of padding are seen by no other, and the class token comes first."""
    for task, rest in (("text", 40), ("listops", 0)):
        torch.manual_seed(0)
        settings = load_settings(task, None, DEBUG)
        model = SequenceClassifier(settings, "scaled_dot_product").eval()
        ids = torch.randint(1, 30, (2, 64))
        ids[:, 64 - rest - 8 :] = 0
        before = model.pooled(ids)
        embedding = model.encoder.encoders[0].pose_encoding.word_embeddings.weight
        with torch.no_grad():
            embedding[0] += 1
        moved = (model.pooled(ids) - before).abs().max()
        # Keys and values of padding are multiplied by 0: what a key of 0 attends with does not depend on its token.
        assert moved < 1e-6, task


def test_skip_train_and_resume(tmp_path):
    words = ["--task", "listops", "--attention", "linformer", "--debug", "--device", "cpu", "--checkpoint_dir"]
    first = run_tasks.run(run_tasks.parser().parse_args([*words, str(tmp_path)]))
    checkpoint = str(tmp_path / "listops__linformer" / "checkpoint.pt")
    second = [*words, str(tmp_path / "b"), "--skip_train", "--checkpoint_path", checkpoint]
    assert run_tasks.run(run_tasks.parser().parse_args(second))["test_loss"] == first["test_loss"]
    with pytest.raises(UserError, match="--skip_train needs"):
        run_tasks.main([*words, str(tmp_path), "--skip_train"])
    with pytest.raises(UserError, match="of a run with settings"):
        run_tasks.main([*words, str(tmp_path), "--steps", "2"])


def test_grid(tmp_path, capsys):
    assert run_grid_search.combinations(["a.b=1,2", "c=0.5"]) == [{"a.b": 1, "c": 0.5}, {"a.b": 2, "c": 0.5}]
    with pytest.raises(UserError, match="--sweep x"):
        run_grid_search.combinations(["x"])
    words = ["--task", "listops", "--attention", "linformer", "--debug", "--device", "cpu", "--checkpoint_dir",
             str(tmp_path), "--sweep", "training.learning_rate=1e-3,1e-2"]  # fmt: skip
    run_grid_search.main(words)
    summaries = sorted(tmp_path.glob("*/listops__linformer/test_eval_summary.json"))
    rates = [json.loads(path.read_text())["settings"]["training"]["learning_rate"] for path in summaries]
    assert sorted(rates) == [1e-3, 1e-2]
    capsys.readouterr()
    run_grid_search.main(words)
    assert len(re.findall("is there already", capsys.readouterr().out)) == 2


def test_files_of_data(tmp_path):
    """Made once, read again; those of the published layout; damaged ones."""
    from xformers.benchmarks.LRA import data

    small = {**data.COUNTS, "listops": (6, 3, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "COUNTS", small)
        made, source = load_part(tmp_path, "listops", "train", 64, None)
        assert source.startswith("made")
        read, source = load_part(tmp_path, "listops", "train", 64, None)
    path = tmp_path / "listops.train.pickle"
    assert source == str(path) and all(torch.equal(made[key], read[key]) for key in made)
    contents = path.read_bytes()
    for damaged in (contents[:-20], b"", b"\x80\x04]."):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_part(tmp_path, "listops", "train", 64, None)
    path.write_bytes(contents)
    with pytest.raises(UserError, match="sequences of 64, expected 128"):
        load_part(tmp_path, "listops", "train", 128, None)


def test_wrong_settings(tmp_path):
    with pytest.raises(UserError, match="training.rate is not among"):
        load_settings("text", None, {"training.rate": 1})
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match="has no task"):
        load_settings("text", tmp_path / "c.json")
    with pytest.raises(UserError, match="No such file"):
        load_settings("text", tmp_path / "nothing.json")
    assert set(json.loads(CONFIG.read_text())) == set(TASKS)
    with pytest.raises(UserError, match="--world_size is 2"):
        run_tasks.main(["--task", "text", "--attention", "nystrom", "--world_size", "2"])
    with pytest.raises(UserError, match="no <task>__<attention>"):
        batch_fetch_results.main(["--checkpoint_dir", str(tmp_path)])
