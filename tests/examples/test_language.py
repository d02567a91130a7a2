"""microGPT.py learns, reads the text of the C++ program and reports as it does; the written texts have their floor."""

import json
import math
import sys

import numpy as np
import pytest
from programs import ROOT, TINY
from python_programs import refused, smoke

sys.path.insert(0, str(ROOT / "examples"))
from text.corpora import load_text  # noqa: E402
from text.rules import Brackets, Markov  # noqa: E402


def test_smoke_is_better_than_a_bigram(tmp_path):
    report, last = smoke("microGPT.py", tmp_path / "report.json", "--data", "brackets")
    assert report["floor_bits_per_byte"] < report["validation_bits_per_byte"] < report["bigram_bits_per_byte"], last
    assert 0 < report["balanced"] < 1 and report["sample"].startswith("Friends of my soul")


@pytest.mark.parametrize("named", [True, False], ids=["a file", "the standard library"])
def test_same_text_and_report_as_the_cpp_program(named, microgpt, text, tmp_path):
    """Keys and all (the C++ program alone has --sparse24)."""
    theirs, ours = tmp_path / "cpp.json", tmp_path / "python.json"
    which = ("--text", text) if named else ("--python", sys.executable)
    microgpt.succeeds("train", *which, *TINY, "--context", 64, "--eval-windows", 64, "--steps", 1, "--report", theirs)
    report, _ = smoke("microGPT.py", ours, "--data", text if named else "stdlib", "--steps", 1)
    cpp = json.loads(theirs.read_text())
    assert set(cpp) - {"sparse24"} <= set(report) and set(cpp["model"]) == set(report["model"])
    assert set(cpp["train"][0]) == set(report["train"][0]) == set(cpp["validation"][0])
    assert cpp["text"] == report["text"]
    assert report["bigram_bits_per_byte"] == pytest.approx(cpp["bigram_bits_per_byte"], abs=1e-5)


def test_markov_text_has_its_entropy():
    rule = Markov(3)
    written = rule.write(300_000, 0).numpy().astype(np.int64) - 97
    assert written.min() == 0 and written.max() == rule.LETTERS - 1
    words = np.zeros(len(written) - 3, dtype=np.int64)
    for i in range(4):
        words = words * rule.LETTERS + written[i : len(written) - 3 + i]
    fours = np.bincount(words, minlength=rule.LETTERS**4).reshape(-1, rule.LETTERS)
    share = fours / np.maximum(fours.sum(1, keepdims=True), 1)
    measured = -(fours[fours > 0] * np.log2(share[fours > 0])).sum() / fours.sum()
    assert measured == pytest.approx(rule.bits_per_byte, abs=0.01)


def test_bracket_text_balances_and_has_its_entropy():
    rule = Brackets()
    written = bytes(rule.write(200_000, 0).numpy())
    lines = written.split(b"\n")[:-1]
    assert all(map(rule.balanced, lines)) and len({*lines}) > 1000
    assert not any(map(rule.balanced, (b"(", b")", b"(]", b"([)]", b"a")))
    bits, depth = 0.0, 0
    for byte in written:  # the ideal code of each byte, by the rule
        p_open = 0.5 if depth == 0 else 0 if depth == 6 else 0.4
        if byte in b"([{":
            bits, depth = bits - math.log2(p_open / 3), depth + 1
        else:
            bits, depth = bits - math.log2(1 - p_open), max(depth - 1, 0)
    assert bits / len(written) == pytest.approx(rule.bits_per_byte, rel=0.01)


def test_last_tenth_of_every_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 20)
    (tmp_path / "b.txt").write_bytes(b"b" * 30)
    (tmp_path / "c.bin").write_bytes(b"\0" * 30)
    (tmp_path / ".hidden").write_bytes(b"h" * 30)
    found = load_text(str(tmp_path), 0, 0)
    assert bytes(found.train.numpy()) == b"a" * 18 + b"b" * 27 and bytes(found.validation.numpy()) == b"aabbb"


def test_no_text(tmp_path):
    (tmp_path / "zeros").write_bytes(b"\0\0")
    assert "is not text" in refused("microGPT.py", "--data", tmp_path / "zeros")
    (tmp_path / "short").write_bytes(b"short text")
    assert "expected more than 64" in refused("microGPT.py", "--smoke", "--data", tmp_path / "short")
