"""The program that times sequence parallelism runs, and what it times is right."""

import json
import subprocess
import sys


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
