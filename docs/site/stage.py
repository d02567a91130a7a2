"""stage.py <folder>   the pages of the site as Sphinx reads them: docs/**.md, CONTRIBUTING and CHANGELOG, with links
into the repository turned into files that lie beside the pages, and docs/index.md as the tree of all."""

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BESIDE = {ROOT / "CONTRIBUTING.md": "contributing.md", ROOT / "CHANGELOG.md": "changelog.md"}
FOLDERS = {ROOT / "benchmarks/results": "performance.md"}  # shown as a page
REFERENCE = "```{toctree}\n:hidden:\n\nreference/python/index\nreference/cpp/index\n```\n"
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")


def pages():
    """Each page and its place in the site."""
    for page in sorted(DOCS.rglob("*.md")):
        yield page, str(page.relative_to(DOCS))
    yield from BESIDE.items()


def place_of(target):
    """Where the site has what a link leads to; None: a folder, which it has not."""
    if target in BESIDE:
        return BESIDE[target]
    if target in FOLDERS:
        return FOLDERS[target]
    if target.is_relative_to(DOCS):
        return str(target.relative_to(DOCS))
    return (
        None
        if target.is_dir()
        else "files/" + str(target.relative_to(ROOT)) + (".txt" if target.suffix == ".md" else "")
    )


def staged(page, place, stage):
    """The page's text with links that hold in the site; files that it links to are copied."""

    def link(match):
        target, anchor = match.groups()
        if "://" in target:
            return match[0]
        target = (page.parent / target).resolve()
        there = place_of(target)
        if there is None:  # a folder: the site has no page of it
            return f"](https://folder.invalid/{target.relative_to(ROOT)})"
        if there.startswith("files/"):
            (stage / there).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, stage / there)
        return f"]({os.path.relpath(there, Path(place).parent)}{anchor})"

    def text(part):
        linked = _LINK.sub(link, part)
        return re.sub(r"\[([^\]]*)\]\(https://folder\.invalid/([^)]*)\)", r"\1 (folder `\2`)", linked)

    parts = _FENCE.split(page.read_text())
    return "".join(part if part.startswith("```") else text(part) for part in parts)


def tree(index):
    """Contents trees, a section each, of what docs/index.md links to in its tables."""
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        rows = re.findall(r"^\| \[[^\]]*\]\(([^)]+\.md)\)", body, re.MULTILINE)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title.strip()}\n\n" + "\n".join(rows) + "\n```\n")
    return "\n".join(trees)


def stage_pages(stage):
    for page, place in pages():
        text = staged(page, place, stage)
        text += "\n" + {"index.md": tree(text), "reference.md": REFERENCE}.get(place, "")
        (stage / place).parent.mkdir(parents=True, exist_ok=True)
        (stage / place).write_text(text)
    for picture in [*DOCS.rglob("*.png"), *DOCS.rglob("*.svg")]:
        (stage / picture.relative_to(DOCS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, stage / picture.relative_to(DOCS))


if __name__ == "__main__":
    stage_pages(Path(sys.argv[1]))
