"""Grey images, pixel by pixel: ten kinds of drawn shapes."""

import math
from typing import Any

import torch

from xformers.helpers.generated_images import draw_shapes


def image_examples(count: int, seq_len: int, seed: int) -> list[dict[str, Any]]:
    """Pixels 1 to 256, sqrt(seq_len) a side."""
    side = math.isqrt(seq_len)
    images, labels = draw_shapes(count, seed, side)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = 1 + (images * weights).sum(1).round().long().clamp(0, 255)
    ids = torch.zeros(count, seq_len, dtype=torch.long)
    ids[:, : side * side] = grey.flatten(1)
    return [{"input_ids_0": x, "label": y} for x, y in zip(ids, labels, strict=True)]
