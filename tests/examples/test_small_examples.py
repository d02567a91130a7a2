"""The small programs of examples/ run, end well, and stay small."""

import re
import subprocess
import sys

import pytest
from programs import ROOT

SMALL = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.cpp")])


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.name)
def test_under_60_lines(path):
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.parametrize("path", [path for path in SMALL if path.suffix == ".cpp"], ids=lambda path: path.name)
def test_cpp(microgpt, path):
    done = subprocess.run([microgpt.program.parent / path.stem], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_packed_training_learns():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/packed_training.py"], capture_output=True, text=True, check=True
    )
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", done.stdout)]
    assert len(losses) == 4 and losses[-1] < 0.6 * losses[0]
