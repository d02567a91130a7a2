"""Running commands from tests, and where the repository is."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command, **kwargs):
    """Runs a command and returns its output; a failure shows all of it."""
    words = [str(word) for word in command]
    result = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}"
    return result.stdout
