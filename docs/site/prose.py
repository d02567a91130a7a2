"""Comments and docstrings of this library as blocks: prose, lists of named things, lines that stay as they stand."""

import re
import textwrap
from dataclasses import dataclass

_ITEM = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)$")


@dataclass
class Block:
    kind: str  # "prose", "items" or "literal"
    text: str


def blocks(text):
    """Paragraphs at the margin are prose; what is indented is a list where each of its outermost lines begins with
    `name: `, or the continuation of one, else literal."""
    groups = []  # (indented, lines)
    for line in textwrap.dedent(text).strip("\n").split("\n"):
        indented = line.startswith("  ")
        if not line.strip():
            if groups:
                groups[-1][1].append("")
        elif groups and groups[-1][0] == indented and (indented or groups[-1][1][-1] != ""):
            groups[-1][1].append(line)
        else:
            groups.append((indented, [line]))
    for indented, lines in groups:
        body = textwrap.dedent("\n".join(lines)).strip("\n")
        if not indented:
            yield Block("prose", re.sub(r"::$", ":", body))
        elif all(_ITEM.match(line) for line in body.split("\n") if line and not line.startswith(" ")):
            yield Block("items", body)
        else:
            yield Block("literal", body)


def items(body):
    """(names, text) of a list."""
    found = []
    for line in body.split("\n"):
        match = None if line.startswith(" ") else _ITEM.match(line)
        if match:
            found.append((match[1], [match[2]]))
        elif line.strip():
            found[-1][1].append(line.strip())
    return [(names, " ".join(words)) for names, words in found]


def spans(text):
    """(is code, text) parts of prose: what stands between backticks, single or double, is code."""
    for part in re.split(r"(``[^`]+``|`[^`]+`)", text):
        if part:
            yield part.startswith("`") and part.endswith("`") and len(part) > 1, part.strip("`")


def to_rst(text):
    """reStructuredText that shows `text` as it reads, line by line."""
    lines = []
    for block in blocks(text):
        if block.kind == "prose":
            lines += _rst(block.text).split("\n")
        elif block.kind == "items":
            lines += [f"- **{names.replace('*', chr(92) + '*')}**: {_rst(words)}" for names, words in items(block.text)]
        else:
            lines += ["::", "", *("    " + line for line in block.text.split("\n"))]
        lines.append("")
    return lines


def _rst(text):
    parts = []
    for code, part in spans(text):
        if code:
            parts.append(f"\\ ``{part}``\\ ".replace("\n", " "))
        else:
            parts.append(re.sub(r"([\\*|_`])", r"\\\1", part))
    return "".join(parts)
