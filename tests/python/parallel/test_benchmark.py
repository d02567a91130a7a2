"""The programs that time and predict sequence and context parallelism run, and what they time is right."""

import json
import subprocess
import sys
from pathlib import Path

import torch

import xformers.ops  # noqa: F401, the operators

BENCHMARKS = Path(__file__).parents[3] / "benchmarks/parallel"


def report_of(program, path, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / program, *arguments, "--json", path],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_two_ranks(tmp_path):
    rows = tmp_path / "rows.json"
    few = ["--num-rounds", "1", "--num-warmup-iters", "1", "--num-bench-iters", "1"]
    command = [sys.executable, "-m", "xformers.benchmarks.benchmark_sequence_parallel_fused", "smoke", "rs"]
    done = subprocess.run(
        [*command, "--world-size", "2", *few, "--json", rows], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "fused equals the collectives: yes" in done.stdout
    report = json.loads(rows.read_text())
    assert report["ranks"] == 2 and report["same"] and len(report["seconds"]) == 6


def test_links_feed_predictions(tmp_path):
    links = tmp_path / "links.json"
    text, report = report_of("links.py", links, "--cpu", "--samples", "1", "--max-bytes", "262144")
    kinds = {row["what"] for row in report["rows"] if row["works"]}
    assert {"all-gather", "send and receive", "one way", "shift", "copy here"} <= kinds
    assert all(row["seconds"] > 0 for row in report["rows"] if row["works"]) and "machine: " in text
    assert report["ipc"]["works"] and report["symmetric_memory"] == {"works": False, "why": "CPU tensors"}
    assert all(value > 0 for value in report["machine"].values())

    arguments = ["--links", links, "--gpus", "8", "16", "--tokens", "65536", "--picture", tmp_path / "scale.png"]
    text, scale = report_of("scale.py", tmp_path / "scale.json", *arguments)
    assert text.startswith("Predicted, not measured") and scale["predicted"]
    assert scale["machine"] == report["machine"] and (tmp_path / "scale.png").stat().st_size > 10000
    for row in scale["causal"] + scale["window"]:
        assert 0 < row["efficiency"] <= 1
    assert {row["method"] for row in scale["causal"]} == {
        "all_gather", "ring", "ulysses", "hybrid of 2", "hybrid of 4", "hybrid of 8"
    }  # fmt: skip


def test_context(tmp_path):
    arguments = ["--cpu", "--samples", "1", "--seqlen", "96", "--masks", "causal", "documents"]
    text, report = report_of("context.py", tmp_path / "rows.json", *arguments)
    assert len(report["rows"]) == 2 * 3 * 2 and "of ideal" in text
    assert all(row["seconds"] > 0 and row["predicted_seconds"] > 0 for row in report["rows"])


def test_prediction_of_products():
    # [64, 32] x [32, 16] of each of 2 ranks: products of 65536 flop, transfers of 4096 bytes.
    rates = [65536.0, 4096.0, 1.0, 2.0]  # of flops and bytes a second, latencies of a product and a transfer
    overlapped, plain = torch.ops.xformers._predict_products(True, 2, 64, 32, 16, 2, rates)
    assert plain == 1 + 2 + 2 + 1 and overlapped == 2 + 1 + 1 + 1
