"""The examples of docs/ops/attention.md run, and its C++ example is the one that tests/ops compiles."""

import re
from pathlib import Path

import pytest
import torch

from xformers.ops import memory_efficient_attention

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ops" / "attention.md").read_text()


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for kind, text in fenced if kind == language]


def test_python_examples_run():
    examples = blocks("python")
    assert len(examples) >= 5
    names = {}
    for example in examples:
        exec(compile(example, "docs/ops/attention.md", "exec"), names)


def test_cpp_example_is_compiled():
    (example,) = blocks("cpp")
    tested = (ROOT / "tests" / "ops" / "example_test.cpp").read_text()
    assert example.strip() == tested.split("// [example]")[1].strip()


def test_message_is_the_real_one():
    (message,) = [block for block in blocks("") if block.startswith("attention: ")]
    query, key = (torch.empty(2, 1024, 16, dim, dtype=torch.bfloat16) for dim in (128, 96))
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(query, key, query)
    assert str(error.value) == message.strip()
