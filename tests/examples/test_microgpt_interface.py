"""What microgpt says: help, complaints, progress, the comparison and its picture."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT, TINY

SUBCOMMANDS = {
    "train": (
        "--text",
        "--attention",
        "--block",
        "--max-seconds",
        "--steps",
        "--checkpoint",
        "--resume",
        "--report",
        "--top-k",
    ),
    "sample": ("--checkpoint", "--prompt", "--temperature"),
    "compare": ("--seqlen", "--rounds", "--report"),
}


def test_help(microgpt):
    assert all(name in microgpt.succeeds("--help") for name in SUBCOMMANDS)
    for name, options in SUBCOMMANDS.items():
        text = microgpt.succeeds(name, "--help")
        assert all(f"{option} " in text for option in options)
        assert max(map(len, text.splitlines())) <= 120
    assert (
        "--attention NAME:{ours,sdpa,flash,cudnn,efficient,vanilla,bigbird,longformer,fixed}=ours"
        in microgpt.succeeds("--help-all")
    )  # choices and default


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "subcommand"),
        (("--layers", 3), "subcommand"),
        (("train", "--layer", 3), "--layer"),
        (("train", "--layers", 0), "is 0, expected a number from 1"),
        (("train", "--lr", "fast"), "is fast, expected a number"),
        (("train", "--attention", "theirs"), "theirs not in {ours,sdpa,flash,cudnn,efficient,vanilla,"),
        (("train", "--dim", 100, "--heads", 3), "--dim 100 over --heads 3"),
        (("train", "--resume", "--overwrite", "--checkpoint", "x"), "--overwrite"),
        (("train", "--sparse24", "both"), "both not in {none,weights,activations}"),
        (("train", "--sparse24", "weights", "--device", "cuda"), "no kernels for GPUs yet.  Fix: --device cpu"),
        (("train", "--device", "tpu"), "tpu not in {auto,cpu,cuda}"),
        (("sample",), "--checkpoint"),
        (("compare", "--heads", 3), "--heads 3"),
    ],
)
def test_wrong_options(microgpt, arguments, words):
    assert words in microgpt.fails(*arguments)


def test_missing_text(microgpt, tmp_path):
    missing, empty, short, binary = (tmp_path / name for name in ("missing", "empty", "short", "binary"))
    empty.touch()
    short.write_text("too short to learn from")
    binary.write_bytes(b"almost text\0" * 1000)
    folder = tmp_path / "folder"
    folder.mkdir()
    alone = ("train", *TINY)
    assert f"there is no file or folder {missing}" in microgpt.fails(*alone, "--text", missing)
    assert "0 bytes for training" in microgpt.fails(*alone, "--text", empty)
    assert "0 bytes for training" in microgpt.fails(*alone, "--text", folder)
    assert "expected at least 33" in microgpt.fails(*alone, "--text", short)
    assert "is not text: byte 11 is zero" in microgpt.fails(*alone, "--text", binary)
    assert "is not a regular file" in microgpt.fails(*alone, "--text", "/dev/zero")
    assert "cannot ask 'no-python'" in microgpt.fails(*alone, "--python", "no-python")
    assert "cannot ask 'false'" in microgpt.fails(*alone, "--python", "false")


def test_diverging_run_stops(microgpt, train, tmp_path):
    message = microgpt.fails(*train, "--steps", 200, "--lr", 1e9)
    assert "--lr" in message


def test_progress_in_a_file_is_plain_lines(microgpt, train):
    out = microgpt.succeeds(*train, "--steps", 10)
    assert "\r" not in out and "\x1b" not in out
    assert re.search(r"step 10  loss \d\.\d{3} bits  [\d.]+k tokens/s  0:00 left", out) or "step 1  loss" in out
    assert re.search(r"trained after 10 steps, .* validation \d\.\d{3} bits per byte, bigram \d\.\d{3}", out)


def test_progress_on_a_terminal_is_a_bar(microgpt, train):
    here, there = pty.openpty()
    process = subprocess.Popen(microgpt.command(*train, "--steps", 100), stdout=there, stderr=there)
    os.close(there)
    out = b""
    try:
        while block := os.read(here, 65536):
            out += block
    except OSError:  # the other end is closed
        pass
    os.close(here)
    assert process.wait(timeout=60) == 0
    assert re.search(rb"\r\x1b\[K\[=* *\] +\d+ %  step \d+  loss", out)


@pytest.mark.parametrize("given, used", [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_wait_asleep_unless_told_otherwise(microgpt, train, given, used):
    process = microgpt.start(*train, "--max-seconds", 60, **given)
    try:
        assert process.stdout.readline().startswith("text:")  # the program proper is running
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert f"OMP_WAIT_POLICY={used}".encode() in environment
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def comparison(microgpt, text, tmp_path_factory):
    """A small model at the full length: its scores alone are 64 MiB in each layer of the plain formula."""
    path = tmp_path_factory.mktemp("compare") / "compare.json"
    size = ("--device", "cpu", "--layers", 1, "--dim", 16, "--heads", 4, "--seqlen", 2000, "--steps", 2, "--rounds", 1)
    out = microgpt.succeeds("compare", "--text", text, *size, "--report", path)
    return out, json.loads(path.read_text())


def test_compare(comparison):
    out, report = comparison
    rows = {row["attention"]: row for row in report["rows"]}
    assert list(rows) == ["ours", "sdpa", "vanilla"] and report["seqlen"] == 2000
    for name, row in rows.items():
        assert re.search(rf"^{name} +\d+\.\d +\d+\.\d\d +\d+ MiB +\d+ MiB", out, re.MULTILINE)
        assert len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median_seconds"] <= max(row["seconds"])
        assert 0 < row["steps_bytes"] < row["peak_bytes"]
        assert row["bits_per_byte"] == pytest.approx(rows["vanilla"]["bits_per_byte"], rel=1e-4)
    # The plain formula keeps scores and weights for its backward pass; ours keeps neither.
    assert rows["vanilla"]["steps_bytes"] > rows["ours"]["steps_bytes"] + (100 << 20)


def test_failing_side_ends_the_comparison(microgpt, tmp_path):
    done = microgpt("compare", "--text", tmp_path / "missing")
    assert done.returncode == 1
    assert "there is no file or folder" in done.stderr and "measuring attention 'ours' failed" in done.stderr


def test_picture(microgpt, train, comparison, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "microgpt"))
    import demo

    report = tmp_path / "train.json"
    microgpt.succeeds(*train, "--steps", 5, "--report", report)
    picture = tmp_path / "picture.png"
    demo.draw(json.loads(report.read_text()), comparison[1], picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_demo_without_a_build(tmp_path):
    program = [sys.executable, ROOT / "examples/microgpt/demo.py", "--build-dir", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert "demo: cannot run" in done.stderr and "make demo" in done.stderr
