"""Images without a download: ten kinds of shapes, of random colour, place, size and noise."""

import math

import torch

SHAPES = ("circle", "square", "triangle", "cross", "ring", "horizontal stripes", "vertical stripes", "diagonal stripes",
          "checker", "gradient")  # fmt: skip


def draw_shapes(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [count, 3, size, size] and int64 labels [count], numbers in SHAPES; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    for begin in range(0, count, 1000):
        part = slice(begin, min(begin + 1000, count))
        images[part] = _draw(labels[part], size, generator)
    return images, labels


def _draw(labels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    radius = uniform(0.25, 0.42, 1, 1)
    x0, y0 = (uniform(0.42, 0.58, 1, 1) for _ in range(2))
    grid = (torch.arange(size) + 0.5) / size
    x, y = (grid[None, None, :] - x0) / radius, (grid[None, :, None] - y0) / radius  # 1: the shape's edge
    far, near = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    square = far < 1
    wave = 2 * math.pi * uniform(0.8, 1.3, 1, 1)
    phase = uniform(0, 2 * math.pi, 1, 1)
    stripes = [torch.sin(wave * along + phase) > 0 for along in (y + 0 * x, x + 0 * y, (x + y) / math.sqrt(2))]
    turn = uniform(0, 2 * math.pi, 1, 1)
    fills = torch.stack(
        [
            x**2 + y**2 < 1,
            square & (far > 0.0),
            (y < 0.9) & (y > 2.2 * x.abs() - 1.1),
            square & (near < 0.3),
            (x**2 + y**2 < 1) & (x**2 + y**2 > 0.4),
            square & stripes[0],
            square & stripes[1],
            square & stripes[2],
            square & (stripes[0] ^ stripes[1]),
        ]
    ).float()
    gradient = (0.5 + 0.35 * (x * turn.cos() + y * turn.sin())).clamp(0, 1) * square
    fill = torch.cat([fills, gradient[None]])[labels, torch.arange(count)][:, None]  # [count, 1, size, size]
    colour, ground = uniform(0.5, 1, 3, 1, 1), uniform(0, 0.35, 3, 1, 1)
    noise = 0.05 * torch.randn(count, 3, size, size, generator=generator)
    return ((fill * colour + (1 - fill) * ground + noise).clamp(0, 1) * 255).round().byte()
