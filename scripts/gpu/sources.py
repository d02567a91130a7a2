"""A digest of the sources that a run on a GPU vouches for: all that the CUDA kernels are compiled from. Comments and
white space don't count."""

import hashlib
import pathlib
import re

FOLDERS = ("xformers/kernels/base", "xformers/kernels/params", "xformers/kernels/cuda")
ENDINGS = {".h", ".cuh", ".cu", ".cpp", ".inc"}
LITERAL_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|//[^\n]*|/\*.*?\*/', re.DOTALL)


def digest(root: pathlib.Path) -> str:
    """`root` holds the folder xformers/."""
    result = hashlib.sha256()
    files = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in ENDINGS)
    for path in sorted(files):
        code = LITERAL_OR_COMMENT.sub(lambda match: match.group(1) or " ", path.read_text())
        result.update(f"{path.relative_to(root).as_posix()}\n{' '.join(code.split())}\n".encode())
    return result.hexdigest()[:16]
