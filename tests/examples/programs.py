"""How the tests run microgpt and llama."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--layers", 2, "--dim", 32, "--heads", 2, "--context", 32, "--batch", 8, "--sample-bytes", 0, "--warmup", 5,
        "--device", "cpu")  # fmt: skip


class Program:
    """Runs the program; arguments may be numbers and paths.

    It waits as the tests do (tests/conftest.py), but for `start`, which leaves that to the program.
    """

    def __init__(self, program: Path):
        self.program = program

    def command(self, *arguments) -> list[str]:
        return [str(self.program), *map(str, arguments)]

    def __call__(self, *arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=300, **options)

    def start(self, *arguments, **environment) -> subprocess.Popen:
        own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**own, **environment},
        )

    def succeeds(self, *arguments, **options) -> str:
        """Standard output of a run that has to end well."""
        done = self(*arguments, **options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def fails(self, *arguments, **options) -> str:
        """The one sentence of a run that has to end badly."""
        done = self(*arguments, **options)
        assert done.returncode not in (0, None) and done.returncode > 0, done
        assert done.stderr.startswith(f"{self.program.name}: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr
