"""A set of images, and where it comes from: the first source that is there."""

from dataclasses import dataclass

import torch
from xformers.helpers.training import UserError

from . import sources

SIZE = 32


@dataclass
class Images:
    """uint8 images [count, 3, 32, 32] and int64 labels [count] in three parts, the second cut from the first."""

    source: str  # for people
    classes: int
    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]

    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each channel of the training images / 255: fp32 [3, 1, 1]."""
        x = self.train[0][:10_000].float() / 255
        return x.mean((0, 2, 3))[:, None, None], x.std((0, 2, 3))[:, None, None] + 1e-3


def load_images(data: str, seed: int, limit: int | None = None) -> Images:
    """`data`: "auto", the name of a source, or the path of a CIFAR-10 archive or of a folder of images.

    auto: Fashion-MNIST of Debian's package, else scikit-learn's digits, else the generated shapes. limit: training
    images that are taken at most, and as many for the two other parts together. UserError says what there is instead.
    """
    if data == "auto":
        for name in ("fashion-mnist", "digits", "generated"):
            if sources.missing(name) is None:
                data = name
                break
    if data in sources.NAMED:
        if why := sources.missing(data):
            raise UserError(f"--data {data}: {why}")
        found = sources.NAMED[data](seed, limit)
    else:
        found = sources.of_path(data, seed)
    parts = []
    for part, (x, y) in zip(("training", "test"), (found.train, found.test), strict=True):
        if len(x) < 10:
            raise UserError(f"{found.name}: {len(x)} {part} images, expected 10 at least.  Fix: pass more to --data")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        parts.append((x[order], y[order]))
    (x, y), (test_x, test_y) = parts
    held = len(x) // 10
    count = len(x) - held if limit is None else min(limit, len(x) - held)
    rest = len(test_x) if limit is None else min(limit // 2, len(test_x))
    return Images(
        source=found.name,
        classes=found.classes,
        train=(x[held : held + count], y[held : held + count]),
        validation=(x[: min(held, rest)], y[: min(held, rest)]),
        test=(test_x[:rest], test_y[:rest]),
    )
