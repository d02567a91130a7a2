"""Examples of a task: files that are there, else made and kept."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from xformers.helpers.plain_pickle import load_plain_pickle
from xformers.helpers.training import UserError
from xformers.helpers.training.files import write_atomically

from .tasks import COUNTS, GENERATORS, PATHFINDER_COUNTS, Example

PARTS = ("train", "dev", "test")


def load_part(
    folder: Path, task: str, part: str, seq_len: int, limit: int | None
) -> tuple[dict[str, torch.Tensor], str]:
    """({"input_ids_0": int64 [count, seq_len], ..., "label": [count]}, where it came from).

    `<folder>/<task>.<part>.pickle` is a list of dicts, as of the published data; where it is missing it is made by the
    task's rule. limit: examples at most, which are made for this run alone.
    """
    path = folder / f"{task}.{part}.pickle"
    if path.exists():
        try:
            examples, source = load_plain_pickle(path.read_bytes(), "ASCII"), str(path)
            examples = examples[:limit]
            batch = {key: _stacked([row[key] for row in examples], seq_len) for key in examples[0]}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path} is damaged ({error}), expected a pickled list of dicts.  Fix: remove it, and it is made anew"
            ) from error
        return batch, source
    count = COUNTS.get(task, PATHFINDER_COUNTS)[PARTS.index(part)]
    made = GENERATORS[task](count if limit is None else min(limit, count), seq_len, 1 + PARTS.index(part))
    if limit is None:
        write_atomically(path, pickle.dumps([_plain(example) for example in made]))
    return {key: torch.stack([example[key] for example in made]) for key in made[0]}, "made by the task's rule"


def _plain(example: Example) -> dict[str, Any]:
    return {key: value.short().numpy() if value.dim() else int(value) for key, value in example.items()}


def _stacked(values: list[Any], seq_len: int) -> torch.Tensor:
    rows = (
        torch.tensor(values) if isinstance(values[0], (int, float)) else torch.stack([torch.tensor(v) for v in values])
    )
    rows = rows.long()
    if rows.dim() == 2 and rows.shape[1] != seq_len:
        raise ValueError(f"sequences of {rows.shape[1]}, expected {seq_len}")
    return rows
