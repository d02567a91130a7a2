"""header_filter.py <header>   prints the header with its comments as Doxygen wants them; Doxygen's INPUT_FILTER.

Headers of this library have plain comments: one in front of a declaration, one behind it, one at the head of the file.
They become ///, ///< and @file, and every sign that Doxygen would take for a command is kept as it stands.
"""

import re
import sys

from prose import blocks, items, spans

_COMMENT = re.compile(r"^(\s*)//(?!/) ?(.*)$")
_BEHIND = re.compile(r"^(\s*[^/\s].*?)\s+// (.*)$")


def marked(text, mark, indent=""):
    """Lines of a Doxygen comment that begin with `mark`."""
    lines = []
    for block in blocks(text):
        if block.kind == "literal":
            lines += ["@verbatim", *block.text.split("\n"), "@endverbatim"]
        elif block.kind == "items":
            lines += [f"- {names}: {escaped(words)}" for names, words in items(block.text)]
        else:
            lines += escaped(block.text).split("\n")
        lines.append("")
    return [f"{indent}{mark} {line}".rstrip() for line in lines[:-1]]


def escaped(text):
    def plain(part):
        return re.sub(r"([\\@<>#%&$\"])", r"\\\1", part).replace("::", "\\::")

    return "".join(f"<tt>{plain(part)}</tt>" if code else plain(part) for code, part in spans(text))


def filtered(header, name):
    # Sphinx does not read initialisers that name fields.
    lines, out, at = re.sub(r"(constexpr [^;{}=]*?)\s*=?\s*\{\.[^;]*\};", r"\1;", header).split("\n"), [], 0
    head = []
    while at < len(lines) and (match := _COMMENT.match(lines[at])):
        head.append(match[2])
        at += 1
    if head:
        out += [f"/// @file {name}", *marked("\n".join(head), "///"), ""]
    while at < len(lines):
        line = lines[at]
        if match := _COMMENT.match(line):
            indent, comment = match[1], []
            while at < len(lines) and (match := _COMMENT.match(lines[at])):
                comment.append(match[2])
                at += 1
            declares = at < len(lines) and lines[at].strip() and not lines[at].strip().startswith(("}", "#", "public:"))
            out += marked("\n".join(comment), "///", indent) if declares else []
            continue
        match = _BEHIND.match(line)
        if (
            match
            and not line.lstrip().startswith(("#", "}", "namespace"))
            and match[1].rstrip().endswith((";", ",", "}"))
        ):
            code, comment, column = match[1], [match[2]], line.index("// " + match[2])
            while at + 1 < len(lines) and re.match(rf"^ {{{column}}}// ", lines[at + 1]):
                at += 1
                comment.append(lines[at].strip()[3:])
            joined = escaped(" ".join(comment))
            out.append(f"{code}  ///< {joined}")
        else:
            out.append(line)
        at += 1
    return "\n".join(out)


if __name__ == "__main__":
    path = sys.argv[1]
    with open(path) as file:
        print(filtered(file.read(), "xformers/" + path.rpartition("/xformers/")[2]))
