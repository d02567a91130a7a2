"""symbols.py <folder of libraries> [--write]   the functions that the libraries show and the public headers name.

Compares them with the lists in tests/install/symbols: what is gone breaks programs, what is new must be meant. --write
makes the lists anew. Kernels of an instruction set, templates and what only a CUDA build has are not part of them.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "tests/install/symbols"
LIBRARIES = {
    "kernels": ("xformers_attention_kernels", "xformers_kernels"),
    "operators": ("xformers_attention", "xformers_ops", "xformers"),
}


def words_of_headers(headers):
    """Every identifier in the public headers, which `headers` lists, one a line."""
    files = [ROOT / line for line in headers.read_text().split()]
    return {word for file in files for word in re.findall(r"\w+", file.read_text())}


def exported(library):
    """(name, signature) of the functions that a library defines for others."""
    listing = subprocess.run(
        ["nm", "-DC", "--defined-only", library], check=True, text=True, capture_output=True
    ).stdout
    for line in listing.splitlines():
        kind, signature = line.split(maxsplit=2)[1:]
        name = re.match(r"xformers(::~?\w+)+(?=\[|\()", signature)
        if kind in "TW" and name and "isa_" not in signature and "::cuda::" not in signature:
            yield name.group().split("::")[-1].lstrip("~"), signature


def public_symbols(folder, part, headers):
    words = words_of_headers(headers)
    libraries = [folder / f"lib{name}.so" for name in LIBRARIES[part]]
    return sorted({signature for library in libraries for name, signature in exported(library) if name in words})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a build folder: it holds lib/ and public_headers.txt")
    parser.add_argument("--write", action="store_true", help="make the lists anew")
    arguments = parser.parse_args()
    status = 0
    for part, libraries in LIBRARIES.items():
        if not (arguments.folder / f"lib/lib{libraries[0]}.so").exists():
            print(f"{part}: left out, because {arguments.folder} does not hold them")
            continue
        now = public_symbols(arguments.folder / "lib", part, arguments.folder / "public_headers.txt")
        record = LISTS / f"{part}.txt"
        if arguments.write:
            record.parent.mkdir(exist_ok=True)
            record.write_text("".join(f"{symbol}\n" for symbol in now))
        before = record.read_text().splitlines()
        for word, symbols in (("gone", set(before) - set(now)), ("new", set(now) - set(before))):
            for symbol in sorted(symbols):
                print(f"{part}: {word}: {symbol}")
                status = 1
        print(f"{part}: {len(now)} public symbols")
    if status:
        print("Fix: keep what is gone (docs/versioning.md says for how long), or, where the change is meant, run "
              f"python scripts/release/symbols.py {arguments.folder} --write and say so in CHANGELOG.md")  # fmt: skip
    return status


if __name__ == "__main__":
    sys.exit(main())
