"""THIRD_PARTY.md has what is inside of the libraries; release tools are pinned by hash."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = {"hwy": "Highway", "nlohmann_json": "JSON for Modern C++", "ZLIB": "zlib"}
LIBRARIES = ("xformers/kernels", "xformers/profiler", "xformers/ops", "xformers/nn")


def test_every_dependency_inside_the_libraries_is_listed():
    used = set()
    for folder in LIBRARIES:
        used |= set(re.findall(r"xformers_dependency\((\w+)\)", (ROOT / folder / "CMakeLists.txt").read_text()))
    assert used == set(NAMES), "a dependency of the libraries: name it here and in THIRD_PARTY.md, with its licence"
    text = (ROOT / "THIRD_PARTY.md").read_text()
    for name in [*NAMES.values(), "CUTLASS", "CUDA runtime"]:
        assert re.search(rf"^\| {re.escape(name)} \| .+ \| .+ \|$", text, re.MULTILINE), name
        assert re.search(rf"^## {re.escape(name)}", text, re.MULTILINE), name


def test_release_tools_are_pinned_by_hash():
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-release.txt").read_text().strip())
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+ ", entry) and "--hash=sha256:" in entry, entry
    pinned = {entry.split("==")[0] for entry in entries}
    wanted = {line for line in (ROOT / "requirements-release.in").read_text().split("\n") if line and line[0] != "#"}
    assert wanted <= pinned
