"""Data of the tasks, made by rules. Only listops is the published task by its definition; on the others results are not
comparable with published ones."""

from collections.abc import Callable
from typing import Any

import torch

from .image import image_examples
from .listops import listops_examples
from .pathfinder import pathfinder_examples
from .text import retrieval_examples, text_examples

Example = dict[str, Any]  # input_ids_0, for pairs input_ids_1: int64 [seq_len], 0 is padding; label

# (count, seq_len, seed) -> examples
GENERATORS: dict[str, Callable[[int, int, int], list[Example]]] = {
    "listops": listops_examples,
    "image": image_examples,
    "text": text_examples,
    "retrieval": retrieval_examples,
    "pathfinder32-curv_baseline": lambda count, length, seed: pathfinder_examples(count, length, seed, 6),
    "pathfinder32-curv_contour_length_9": lambda count, length, seed: pathfinder_examples(count, length, seed, 9),
    "pathfinder32-curv_contour_length_14": lambda count, length, seed: pathfinder_examples(count, length, seed, 14),
}
# Examples of the published training, development and test parts.
COUNTS = {
    "listops": (96_000, 2_000, 2_000),
    "image": (45_000, 5_000, 10_000),
    "text": (20_000, 5_000, 25_000),
    "retrieval": (147_086, 18_090, 17_437),
}
PATHFINDER_COUNTS = (160_000, 20_000, 20_000)
COMPARABLE = ("listops",)


def padded(ids: list[int], length: int) -> torch.Tensor:
    """int64 [length]; what is longer is cut."""
    out = torch.zeros(length, dtype=torch.long)
    out[: min(len(ids), length)] = torch.tensor(ids[:length])
    return out
