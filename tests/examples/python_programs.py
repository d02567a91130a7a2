"""How the tests run the Python programs of examples/."""

import json
import re
import subprocess
import sys
from pathlib import Path

from programs import ROOT


def run(path: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "examples" / path, *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)


def smoke(path: str, report: Path, *arguments) -> tuple[dict, str]:
    """The report and the last line of a --smoke run on the CPU, which has to end well."""
    done = run(path, "--smoke", "--device", "cpu", "--report", report, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text()), done.stdout.strip().splitlines()[-1]


def refused(path: str, *arguments) -> str:
    """The one sentence of a run that has to end badly, with what to do."""
    done = run(path, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.fullmatch(rf"{Path(path).name}: .+Fix: .+\n", done.stderr), done.stderr
    return done.stderr
