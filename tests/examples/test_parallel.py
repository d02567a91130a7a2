"""examples/parallel: the same losses on two processes as on one, and they fall."""

import re
import subprocess
import sys

from programs import ROOT


def test_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, ROOT / "examples/parallel/train.py", "--steps", "11", "--method", "ring"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"by (\w+), .* loss ([\d.]+) on 2 ranks  ([\d.]+) on one", done.stdout)
    assert [spread for spread, _, _ in rows] == ["features"] * 2 + ["sequence"] * 2, done.stdout
    for _, loss, expected in rows:
        assert abs(float(loss) - float(expected)) < 2e-3
    assert float(rows[-1][1]) < 0.8 * float(rows[0][1])
