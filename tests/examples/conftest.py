"""Fixtures: the built programs, and text that a tiny model learns in a second."""

import os
import random
from pathlib import Path

import pytest
from programs import ROOT, TINY, Program


def built(name: str) -> Program:
    build = Path(os.environ.get("XFORMERS_BUILD_DIR", ROOT / "build/release")).resolve()
    program = build / "bin" / name
    assert program.exists(), f"{program} is not built.  Fix: make test, or set XFORMERS_BUILD_DIR"
    return Program(program)


@pytest.fixture(scope="session")
def microgpt() -> Program:
    return built("microgpt")


@pytest.fixture(scope="session")
def llama() -> Program:
    return built("llama")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """20 kB of sentences: a byte says little about the next one, a word's beginning a lot."""
    choose = random.Random(0).choice
    words = ("attention", "attends", "tensor", "tension", "memory", "method", "causal", "casual", "kernel", "kernels")
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(choose(words) + choose((" ", " ", ",\n", ".\n")) for _ in range(2500)))
    return path


@pytest.fixture
def train(text) -> tuple:
    """Arguments of a short run on that text."""
    return ("train", "--text", text, *TINY)
