"""What all Python programs of examples/ have in common."""

import os
import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT
from python_programs import run

PROGRAMS = ("cifar_ViT.py", "cifar_MetaFormer.py", "microGPT.py", "llama_inference/generate.py", "build_model/build.py")


@pytest.mark.parametrize("path", PROGRAMS)
def test_help(path):
    done = run(path, "--help")
    assert done.returncode == 0 and all(word in done.stdout for word in ("--smoke", "--report"))


def test_a_process_that_is_stopped_goes_on(tmp_path):
    """SIGTERM comes to a real process; what it saved is whole, and the run goes on as an uninterrupted one."""
    words = ["--smoke", "--data", "brackets", "--steps", "12", "--device", "cpu", "--sample_bytes", "8"]
    file = tmp_path / "run.ckpt"
    command = [sys.executable, ROOT / "examples/microGPT.py", *words, "--checkpoint", file, "--save_every", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    while not file.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM and "go on with --resume" in said, said
    resumed = run("microGPT.py", *words, "--checkpoint", file, "--resume")
    whole = run("microGPT.py", *words)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stdout and not list(tmp_path.glob(".run*"))

    def result(text):
        return [line.rpartition(",")[0] for line in text.splitlines() if line.startswith("microGPT:")]

    assert result(resumed.stdout) == result(whole.stdout) != []
