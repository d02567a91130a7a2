"""The examples in the README compile and run as printed."""

import sys
from pathlib import Path

from shell import ROOT, run


def code_block(language):
    """The one fenced block of this language."""
    blocks = (ROOT / "README.md").read_text().split(f"```{language}\n")[1:]
    assert len(blocks) == 1, f"README.md has {len(blocks)} {language} blocks, expected 1"
    return blocks[0].split("```")[0]


def test_cpp(build_outside, tmp_path):
    source = tmp_path / "example.cpp"
    source.write_text(code_block("cpp"))
    folder = build_outside(Path(__file__).parent / "consumer", CONSUMER_SOURCE=source)
    assert "[2, 1024, 8, 64]" in run(folder / "consumer")


def test_python(tmp_path):
    script = tmp_path / "example.py"
    script.write_text(code_block("python"))
    assert "torch.Size([2, 1024, 8, 64])" in run(sys.executable, script)
