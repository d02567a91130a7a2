"""public_headers.py <folder> <list of headers> <folder of Doxygen's XML>   a page of reference per folder of public
headers, and how many headers have an entry: a comment at their head, and what they declare."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PARTS = {  # of the library, as the index shows them: (first folders of the path, heading)
    "xformers/ops": "Operators on LibTorch",
    "xformers/nn": "Modules and functions of layers",
    "xformers/kernels": "Kernels alone",
}


SECTIONS = "detaileddescription innernamespace innerclass func typedef enum var user-defined " + " ".join(
    f"public-{kind}" for kind in ("func", "attrib", "static-func", "static-attrib", "type")
)


def documented(xml):
    """Headers that Doxygen has a text about, by their address."""
    found = set()
    for entry in ElementTree.parse(xml / "index.xml").findall("compound[@kind='file']"):
        compound = ElementTree.parse(xml / f"{entry.get('refid')}.xml").find("compounddef")
        if "".join(compound.find("detaileddescription").itertext()).strip():
            found.add(compound.find("location").get("file").removeprefix(f"{ROOT}/"))
    return found


def prepare(xml):
    """Doxygen's index calls a file by its last part, and Breathe looks for the whole address; entries of classes refer
    to their files, of which Breathe makes no labels."""
    tree = ElementTree.parse(xml / "index.xml")
    for entry in tree.findall("compound[@kind='file']"):
        compound = ElementTree.parse(xml / f"{entry.get('refid')}.xml").find("compounddef")
        entry.find("name").text = compound.find("location").get("file").removeprefix(f"{ROOT}/")
    tree.write(xml / "index.xml")
    for entry in [*xml.glob("class*.xml"), *xml.glob("struct*.xml")]:
        entry.write_text(re.sub(r"<includes .*?</includes>\n", "", entry.read_text()))


def write_pages(stage, headers, xml):
    prepare(xml)
    folder = stage / "reference/cpp"
    folder.mkdir(parents=True, exist_ok=True)
    by_folder = {}
    for header in sorted(headers):
        by_folder.setdefault(str(Path(header).parent), []).append(header)
    for where, entries in by_folder.items():
        lines = [":orphan:", "", where, "=" * len(where), ""]
        for header in entries:
            title = f"``{header}``"
            lines += [
                title,
                "-" * len(title),
                "",
                f".. doxygenfile:: {header}",
                f"   :sections: {SECTIONS}",
                "",
            ]
        (folder / f"{where.replace('/', '-')}.rst").write_text("\n".join(lines))
    lines = ["C++", "===", "", "Every public header, by folder.", ""]
    for part, heading in PARTS.items():
        lines += [heading, "-" * len(heading), ""]
        for where, entries in by_folder.items():
            if where.startswith(part):
                names = ", ".join(Path(header).name for header in entries)
                lines.append(f"- :doc:`{where} <{where.replace('/', '-')}>`: {names}")
        lines.append("")
    (folder / "index.rst").write_text("\n".join(lines))
    missing = sorted(set(headers) - documented(xml))
    print(f"C++: {len(headers) - len(missing)} of {len(headers)} public headers have an entry")
    if missing:
        sys.exit("no comment at the head: " + ", ".join(missing))


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]), Path(sys.argv[2]).read_text().split(), Path(sys.argv[3]))
