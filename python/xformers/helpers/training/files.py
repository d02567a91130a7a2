"""Reports and checkpoints, which are there whole or not at all."""

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from .errors import UserError


def write_atomically(path: str | Path, contents: bytes) -> None:
    """Beside `path`, forced to the disk, then renamed. UserError where the place can't be written to."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.  Fix: name another file") from error


def write_json(path: str | Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings and containers of them, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. UserError for a file that is missing, damaged or of another kind."""
    try:
        contents = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.  Fix: name a checkpoint that is there") from error
    try:
        state = torch.load(contents, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no checkpoint.  Fix: name another, or start afresh") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds {type(state).__name__}, expected a checkpoint.  Fix: name another file")
    return state
