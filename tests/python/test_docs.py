"""The pages of docs/ are true: Python examples run, C++ examples are compiled, messages are the real ones, links lead
somewhere, and the tests that docs/better.md names exist."""

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from xformers.components import attention, feedforward, positional_embedding

from xformers.ops import fmha, memory_efficient_attention
from xformers.profiler import device_limits

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
RUN = [page for page in [*PAGES, ROOT / "CONTRIBUTING.md"] if "```python\n" in page.read_text()]


def name_of(path):
    return str(path.relative_to(ROOT))


def fences(page):
    """(language, text) of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for kind, text in fences(page) if kind == language]


@pytest.fixture
def registries_as_before():
    """What a page registers is forgotten: other pages list what there is."""
    kept = [attention._registry, feedforward._registry, positional_embedding._registry]
    kept = [value for module in kept for value in vars(module).values() if isinstance(value, dict | set)]
    limits = device_limits._added.copy()
    before = [value.copy() for value in kept]
    yield
    for value, old in zip(kept, before, strict=True):
        value.clear()
        value.update(old)
    device_limits._added[:] = limits


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_python_examples_run(page, capsys, registries_as_before, tmp_path, monkeypatch):
    """All examples of a page, in order, in one namespace; a block of text behind one is what it prints."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses and compilers look it up
    examples = fences(page)
    for (kind, example), (follows, output) in zip(examples, [*examples[1:], ("", "")], strict=True):
        if kind == "python":
            capsys.readouterr()
            exec(compile(example, name_of(page), "exec"), vars(module))
            printed = capsys.readouterr().out
            assert follows != "text" or printed == output


def test_blocks_of_text_are_outputs():
    """Nothing that looks like what a program printed is left uncompared; other languages are known ones."""
    known = {"", "bash", "cmake", "cpp", "python", "sh", "text"}
    for page in PAGES:
        before = ""
        for kind, text in fences(page):
            assert kind in known, f"{name_of(page)}: {kind}"
            assert kind != "text" or before == "python", f"{name_of(page)}: {text}"
            before = kind


def test_cpp_examples_are_compiled():
    """Each is a piece of a test, or one of the README's programs, which tests/install compiles and runs."""
    sources = [
        path.read_text().split("// [example]")[1::2] for path in (ROOT / "tests" / "ops").glob("*example_test.cpp")
    ]
    compiled = [example.strip() for examples in sources for example in examples]
    programs = [example.strip() for example in blocks(ROOT / "README.md", "cpp")]
    shown = [example.strip() for page in PAGES for example in blocks(page, "cpp")]
    assert sorted(shown) == sorted(compiled + programs)


def test_start_shows_the_programs_of_the_readme():
    for language in ("python", "cpp"):
        assert blocks(DOCS / "start.md", language) == blocks(ROOT / "README.md", language)


def test_message_is_the_real_one():
    (message,) = [text for text in blocks(DOCS / "ops" / "attention.md", "") if text.startswith("attention: ")]
    query, key = (torch.empty(2, 1024, 16, dim, dtype=torch.bfloat16) for dim in (128, 96))
    with pytest.raises(ValueError) as error:
        memory_efficient_attention(query, key, query)
    assert str(error.value) == message.strip()


def test_pictures_of_layouts_are_the_library_s():
    script = runpy.run_path(str(ROOT / "scripts" / "layout_pictures.py"))
    assert script["PAGE"].read_text() == script["page_with_pictures"]()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    missing = [
        name_of(page) for page in PAGES if f"({page.relative_to(DOCS)})" not in index and page.name != "index.md"
    ]
    assert not missing


def test_tests_that_are_named_exist():
    """Each row of docs/better.md names a test, and it is there."""
    rows = re.findall(r"^\| .* \| (.*) \|$", (DOCS / "better.md").read_text(), re.MULTILINE)
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row):
            file, _, test = name.partition("::")
            path = files.get(Path(file).name) if "/" not in file else ROOT / file
            assert path is not None and path.exists(), name
            assert not test or f"def {test}(" in path.read_text(), name


def test_table_of_operators():
    """The table of docs/ops/attention-operators.md says what the contracts say."""
    short = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "ops" / "attention-operators.md").read_text(), re.MULTILINE)
    checked = 0
    for name, cells in rows:
        if name == "memory_efficient_attention_backward":  # of the table after it
            continue
        directions, dtypes, head_dim, own_head_dim, dropout, bias, _ = cells.split(" | ")
        op = getattr(fmha, name).FwOp
        named = {dtype for word, dtype in short.items() if word in dtypes.split(";")[0]}
        assert named == op.SUPPORTED_DTYPES if name != "generic" else named <= op.SUPPORTED_DTYPES, name
        assert head_dim == "any" or str(op.SUPPORTED_MAX_K) in head_dim, name
        assert (own_head_dim == "yes") == op.SUPPORTS_DIFFERENT_VALUE_EMBED, name
        assert (dropout == "yes") == op.SUPPORTS_DROPOUT, name
        assert (bias != "no") == (torch.Tensor in op.SUPPORTED_ATTN_BIAS_TYPES), name
        assert ("/ yes" in directions) == hasattr(getattr(fmha, name), "BwOp"), name
        checked += 1
    assert checked == 5
