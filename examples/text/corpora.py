"""Texts as bytes: files, folders and the standard library as examples/microgpt takes them, or written by a rule."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from xformers.helpers.training import UserError

from .rules import Brackets, Markov

# Not the library's own prose: tests, installed packages, and folders of tables.
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "idlelib"}


@dataclass
class Text:
    """uint8 [bytes]: the last tenth of every file is validation text."""

    source: str  # for people
    files: int
    train: torch.Tensor
    validation: torch.Tensor
    rule: Markov | Brackets | None = None  # that wrote it


def load_text(data: str, seed: int, size: int) -> Text:
    """`data`: "stdlib", "markov", "brackets" (of `size` bytes), or the path of a file or folder. UserError else."""
    if data in ("markov", "brackets"):
        rule = Markov(seed) if data == "markov" else Brackets()
        written = rule.write(size, seed)
        cut = len(written) - len(written) // 10
        return Text(f"{data}, {rule.bits_per_byte:.3f} bits per byte", 1, written[:cut], written[cut:], rule)
    if data == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        paths = _below(root, lambda path: path.suffix == ".py", lambda folder: folder.name not in SKIPPED)
        return _of_files(str(root), paths, named=False)
    path = Path(data)
    if path.is_dir():
        seen = lambda p: not p.name.startswith(".")  # noqa: E731
        return _of_files(data, _below(path, seen, seen), named=False)
    if path.is_file():
        return _of_files(data, [path], named=True)
    raise UserError(
        f"--data {data}: there is no such file or folder.  Fix: stdlib, markov, brackets, or a path of text"
    )


def _below(root: Path, wanted, entered) -> list[Path]:
    """Files in the order of their names as strings, whatever the file system's is."""
    found: list[Path] = []
    for folder, folders, files in root.walk() if hasattr(root, "walk") else _walk(root):
        folders[:] = [name for name in folders if entered(folder / name)]
        found += [folder / name for name in files if wanted(folder / name) and (folder / name).is_file()]
    return sorted(found, key=lambda path: path.parts)


def _walk(root: Path):
    import os

    return ((Path(folder), folders, files) for folder, folders, files in os.walk(root))


def _of_files(source: str, paths: list[Path], named: bool) -> Text:
    train, validation, files = bytearray(), bytearray(), 0
    for path in paths:
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}.  Fix: name another --data") from error
        if 0 in contents:
            if named:
                raise UserError(
                    f"{path} is not text: byte {contents.index(0)} is zero.  Fix: pass plain text to --data"
                )
            continue
        cut = len(contents) - len(contents) // 10
        train += contents[:cut]
        validation += contents[cut:]
        files += 1
    if not files or not validation:
        raise UserError(f"{source} has no text to learn from.  Fix: name another --data")
    return Text(source, files, *(torch.frombuffer(part, dtype=torch.uint8) for part in (train, validation)))
