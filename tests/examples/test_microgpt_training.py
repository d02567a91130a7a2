"""microgpt learns, and says truly how well."""

import json
import math
import random
import string
import sys
import sysconfig
from collections import Counter
from itertools import pairwise

import pytest
from programs import TINY


def report_of(microgpt, path, *arguments) -> dict:
    microgpt.succeeds(*arguments, "--report", path)
    return json.loads(path.read_text())


def losses(report: dict) -> list[float]:
    return [point["bits_per_byte"] for point in report["train"]]


def test_learns_more_than_the_bigram_knows(microgpt, train, tmp_path):
    report = report_of(microgpt, tmp_path / "report.json", *train, "--steps", 250, "--lr", 5e-3)
    first, last = report["validation"][0]["bits_per_byte"], report["validation_bits_per_byte"]
    assert first == pytest.approx(8, abs=0.2)  # an untrained model finds all bytes equally likely
    assert last < 0.9 * report["bigram_bits_per_byte"]
    assert last == report["validation"][-1]["bits_per_byte"]


def test_report(microgpt, train, text, tmp_path):
    report = report_of(microgpt, tmp_path / "report.json", *train, "--steps", 6, "--evals", 3, "--sample-bytes", 5)
    assert report["steps"] == 6 and [point["step"] for point in report["train"]] == list(range(6))
    assert [point["step"] for point in report["validation"]] == [0, 2, 4, 6]
    assert report["seconds"] > 0 and report["tokens_per_second"] > 0 and report["threads"] >= 1
    assert report["attention"] == "ours" and report["dtype"] == "float32" and report["batch"] == 8
    size = len(text.read_bytes())
    assert report["text"]["files"] == 1 and report["text"]["source"] == str(text)
    assert report["text"]["validation_bytes"] == size // 10
    assert report["text"]["train_bytes"] == size - size // 10
    # Embedding and head, and in each of the 2 layers 12 dim^2 of matrices; gain and offset of 5 norms.
    assert report["model"]["parameters"] == 2 * 256 * 32 + 2 * 12 * 32**2 + 5 * 2 * 32
    assert report["sample"].startswith("def ")


def test_bigram_baseline(microgpt, train, text, tmp_path):
    report = report_of(microgpt, tmp_path / "report.json", *train, "--steps", 1, "--eval-windows", 10**6)
    data = text.read_bytes()
    learned, held_out = data[: len(data) - len(data) // 10], data[len(data) - len(data) // 10 :]
    pairs, firsts, singles = Counter(pairwise(learned)), Counter(learned[:-1]), Counter(learned)
    used = (len(held_out) - 1) // 32 * 32  # whole windows
    assert report["text"]["validation_bytes_used"] == used
    bits = 0.0
    for a, b in pairwise(held_out[: used + 1]):
        fallback = (singles[b] + 1) / (len(learned) + 256)
        bits -= math.log2((pairs[a, b] + fallback) / (firsts[a] + 1))
    assert report["bigram_bits_per_byte"] == pytest.approx(bits / used, rel=1e-4)


def test_three_attentions_learn_the_same(microgpt, train, tmp_path):
    curves = {
        name: losses(report_of(microgpt, tmp_path / name, *train, "--steps", 12, "--attention", name))
        for name in ("ours", "sdpa", "vanilla")
    }
    assert curves["ours"][0] - curves["ours"][-1] > 0.5
    assert curves["ours"] == pytest.approx(curves["vanilla"], rel=1e-4)
    assert curves["sdpa"] == pytest.approx(curves["vanilla"], rel=1e-4)


@pytest.mark.parametrize("name", ["bigbird", "longformer", "fixed"])
def test_attention_over_blocks(microgpt, train, tmp_path, name):
    """It learns, from a part of the past; one window of blocks is causal attention."""
    long = (*train, "--context", 128, "--block", 16, "--steps", 12)
    dense = losses(report_of(microgpt, tmp_path / "dense", *long))
    sparse = losses(report_of(microgpt, tmp_path / "sparse", *long, "--attention", name, "--sample-bytes", 20))
    assert sparse[0] - sparse[-1] > 0.5
    assert sparse != dense and sparse == pytest.approx(dense, rel=0.02)
    if name == "fixed":  # whose windows are longer
        whole = (*train, "--context", 128, "--block", 32, "--steps", 4)
        curves = [losses(report_of(microgpt, tmp_path / x, *whole, "--attention", x)) for x in ("ours", name)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("name", ["weights", "activations"])
def test_sparse24(microgpt, train, tmp_path, name):
    """It learns nearly as the dense model does, whose numbers it begins with; what it saved goes on where it was."""
    dense = losses(report_of(microgpt, tmp_path / "dense", *train, "--steps", 12))
    saved = (*train, "--sparse24", name, "--checkpoint", tmp_path / "model", "--sample-bytes", 20)
    report = report_of(microgpt, tmp_path / "sparse", *saved, "--steps", 12)
    sparse = losses(report)
    assert report["sparse24"] == name
    assert sparse[0] - sparse[-1] > 0.5
    assert sparse != dense and sparse == pytest.approx(dense, rel=0.02)
    wrote = ("sample", "--checkpoint", tmp_path / "model", "--bytes", 20)
    assert microgpt.succeeds(*wrote, "--sparse24", name).strip() == report["sample"].strip()


def test_sparse_activations_do_not_see_the_future(microgpt, text, tmp_path):
    """Bits per byte of text whose next byte is random: 8 for a model that cannot look ahead, however it is trained."""
    noise = tmp_path / "noise"
    noise.write_text("".join(random.Random(0).choices(string.ascii_letters[:16], k=20_000)))
    arguments = ("train", "--text", noise, *TINY, "--steps", 60, "--lr", 0.02, "--sparse24", "activations")
    assert losses(report_of(microgpt, tmp_path / "report", *arguments))[-1] > 3.9


def test_bfloat16(microgpt, train, tmp_path):
    exact = losses(report_of(microgpt, tmp_path / "exact", *train, "--steps", 12))
    rounded = losses(report_of(microgpt, tmp_path / "rounded", *train, "--steps", 12, "--dtype", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_same_seed_same_curve(microgpt, train, tmp_path):
    arguments = (*train, "--steps", 8, "--dropout", 0.2)
    first = losses(report_of(microgpt, tmp_path / "first", *arguments))
    assert losses(report_of(microgpt, tmp_path / "again", *arguments)) == first
    assert losses(report_of(microgpt, tmp_path / "other", *arguments, "--seed", 2)) != first


@pytest.mark.wall_clock
def test_stops_in_time(microgpt, train, tmp_path):
    report = report_of(microgpt, tmp_path / "report.json", *train, "--max-seconds", 2)
    assert report["steps"] > 1
    assert 2 <= report["seconds"] < 4


def test_default_text_is_the_standard_library(microgpt, tmp_path):
    report = report_of(microgpt, tmp_path / "r", "train", *TINY, "--python", sys.executable, "--steps", 1)
    assert report["text"]["source"] == sysconfig.get_path("stdlib")
    assert report["text"]["files"] > 100
    assert 2 < report["bigram_bits_per_byte"] < 5


def test_folder(microgpt, train, tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a" * 1000)
    (folder / "deep" / "b.txt").write_bytes(b"b" * 500)
    (folder / "picture.bin").write_bytes(b"\0" * 1000)
    (folder / ".hidden").write_bytes(b"h" * 1000)
    report = report_of(microgpt, tmp_path / "report.json", *train, "--text", folder, "--steps", 1)
    assert report["text"]["files"] == 1 + 2  # with the file that `train` names
    report = report_of(microgpt, tmp_path / "report.json", "train", *TINY, "--text", folder, "--steps", 1)
    assert (report["text"]["files"], report["text"]["train_bytes"], report["text"]["validation_bytes"]) == (
        2,
        1350,
        150,
    )
