"""Pathfinder: are two dots the ends of one dashed curve, or of two ("Learning long-range spatial dependencies with
horizontal gated recurrent units", Linsley et al., arXiv:1805.08315)? Drawn here by a rule of our own."""

from __future__ import annotations

import math
import random
from typing import Any

import torch

STEP, DASH, BEND, MARGIN = 2.7, 1.7, 0.75, 2.3  # pixels, pixels, radians between dashes, pixels between curves
DISTRACTORS, DISTRACTOR_LENGTH = 4, 3

Curve = list[tuple[float, float, float]]  # middle of each dash, and its direction


def draw_curve(chooser: random.Random, length: int, side: int, taken: list[Curve]) -> Curve | None:
    """`length` dashes that keep their distance from the others and from each other; None where it did not fit."""
    x, y = (chooser.uniform(2, side - 2) for _ in range(2))
    heading = chooser.uniform(0, 2 * math.pi)
    others = [(a, b) for curve in taken for a, b, _ in curve]
    curve: Curve = []
    for _ in range(length):
        if not (1.5 <= x <= side - 2.5 and 1.5 <= y <= side - 2.5):
            return None
        if any((x - a) ** 2 + (y - b) ** 2 < MARGIN**2 for a, b in others):
            return None
        if any((x - a) ** 2 + (y - b) ** 2 < MARGIN**2 for a, b, _ in curve[:-1]):
            return None
        curve.append((x, y, heading))
        turned = heading + chooser.uniform(-BEND, BEND)
        x += STEP / 2 * (math.cos(heading) + math.cos(turned))
        y += STEP / 2 * (math.sin(heading) + math.sin(turned))
        heading = turned
    return curve


def draw_scene(chooser: random.Random, length: int, side: int) -> list[Curve]:
    """Two curves of `length` dashes, and short ones that lead astray."""
    while True:
        curves: list[Curve] = []
        for wanted in (length, length):
            for _ in range(300):
                curve = draw_curve(chooser, wanted, side, curves)
                if curve is not None:
                    curves.append(curve)
                    break
        if len(curves) == 2:
            break
    for _ in range(DISTRACTORS):
        for _ in range(20):
            curve = draw_curve(chooser, DISTRACTOR_LENGTH, side, curves)
            if curve is not None:
                curves.append(curve)
                break
    return curves


def draw_pixels(curves: list[Curve], dots: list[tuple[float, float, float]], side: int) -> torch.Tensor:
    """int64 [side, side], 1 to 255: dashes smoothed over a pixel, dots as discs."""
    middles = torch.tensor([dash for curve in curves for dash in curve])
    grid = torch.arange(side) + 0.5
    dx, dy = grid[None, None, :] - middles[:, 0, None, None], grid[None, :, None] - middles[:, 1, None, None]
    cos, sin = middles[:, 2].cos()[:, None, None], middles[:, 2].sin()[:, None, None]
    along, across = (dx * cos + dy * sin).abs() - DASH / 2, (dy * cos - dx * sin).abs()
    far = (along.clamp(min=0) ** 2 + across**2).sqrt()
    light = (1.2 - far).clamp(0, 1).amax(0)
    for x, y, _ in dots:
        disc = ((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2).sqrt()
        light = torch.maximum(light, (2.2 - disc).clamp(0, 1))
    return 1 + (254 * light).round().long()


def pathfinder_examples(count: int, seq_len: int, seed: int, length: int) -> list[dict[str, Any]]:
    """Images of sqrt(seq_len) pixels a side, row by row; label 1: one curve joins the dots. Curves are shorter where
    the image is smaller than 32 x 32."""
    side = math.isqrt(seq_len)
    if side < 32:
        length = max(2, length * side // 40)
    chooser = random.Random(seed)
    examples = []
    for _ in range(count):
        curves = draw_scene(chooser, length, side)
        joined = chooser.random() < 0.5
        dots = [curves[0][0], curves[0][-1] if joined else curves[1][0]]
        pixels = draw_pixels(curves, dots, side).flatten()
        ids = torch.zeros(seq_len, dtype=torch.long)
        ids[: len(pixels)] = pixels
        examples.append({"input_ids_0": ids, "label": torch.tensor(int(joined))})
    return examples
