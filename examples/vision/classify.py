"""A run of a classifier: options, training, accuracy beside softmax regression on the pixels, report."""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from xformers.helpers.training import (
    EpochOrder,
    Precision,
    Trainer,
    choose_device,
    saving_of,
    training_parser,
    warmup_cosine,
)
from xformers.helpers.training import write_json as write_report

from .images import Images, load_images

SMOKE = {"limit": 1920, "data": "generated"}  # where these options have their defaults


def vision_parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Options of data and training; `defaults` are those of the program."""
    parser = training_parser(description)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="auto",
        help="a CIFAR-10 archive for Python, a folder of images, fashion-mnist, digits, generated; auto: the first of "
        "the last three that is there",
    )
    data.add_argument("--limit", type=int, help="training images at most")
    data.add_argument("--augment", action="store_true", help="shift by up to 4 pixels and mirror")
    train = parser.add_argument_group("training")
    train.add_argument("--max_epochs", type=int, help="passes over the images")
    train.add_argument("--batch", type=int, help="images at a time")
    train.add_argument("--ref_batch", type=int, help="images in a step of the optimiser")
    train.add_argument("--learning_rate", type=float)
    train.add_argument("--weight_decay", type=float, default=0.03)
    train.add_argument("--linear_warmup_ratio", type=float, default=0.1, help="share of the run")
    train.add_argument("--no_baseline", action="store_true", help="without softmax regression on the pixels")
    parser.set_defaults(**defaults)
    return parser


class Classifier:
    """Images on a device, and a model of them."""

    def __init__(self, images: Images, model: nn.Module, device: torch.device, augment: bool, seed: int):
        self.images, self.model, self.augment, self.seed = images, model, augment, seed
        self.mean, self.std = (value.to(device) for value in images.mean_and_std())
        self.parts = {
            part: tuple(t.to(device) for t in getattr(images, part)) for part in ("train", "validation", "test")
        }

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() / 255 - self.mean) / self.std

    def batch(self, order: EpochOrder, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = order(number)
        x, y = (t[chosen.to(t.device)] for t in self.parts["train"])
        if self.augment:
            x = _shifted(x, torch.Generator().manual_seed(self.seed * 1_000_003 + number))
        return self.normalised(x), y

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x).float(), y)

    def measure(self, part: str) -> tuple[float, float]:
        """Mean loss and share of right answers."""
        loss, right = 0.0, 0
        x, y = self.parts[part]
        for begin in range(0, len(x), 256):
            logits = self.model(self.normalised(x[begin : begin + 256])).float()
            wanted = y[begin : begin + 256]
            loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
        return loss / len(x), right / len(x)

    def softmax_regression(self, epochs: int) -> float:
        """Test accuracy of one linear layer on the pixels: what a model has to beat."""
        x, y = self.parts["train"]
        torch.manual_seed(self.seed)
        layer = nn.Linear(x[0].numel(), self.images.classes).to(x.device)
        optimizer = torch.optim.AdamW(layer.parameters(), 1e-3, weight_decay=1e-4)
        order = EpochOrder(len(x), 256, self.seed)
        steps = epochs * order.per_epoch
        for step in range(steps):
            chosen = order(step).to(x.device)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(layer(self.normalised(x[chosen]).flatten(1)), y[chosen]).backward()
            optimizer.step()
        test, wanted = self.parts["test"]
        with torch.no_grad():
            answers = torch.cat([layer(self.normalised(part).flatten(1)).argmax(-1) for part in test.split(1000)])
        return float((answers == wanted).double().mean())


def _shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to 4 pixels both ways, half of them mirrored."""
    count, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    down, right = (torch.randint(9, (count, 1), generator=generator) for _ in range(2))
    rows, cols = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    cols = torch.where(mirrored, cols.flip(1), cols)
    each = torch.arange(count)[:, None, None]
    return padded.transpose(0, 1)[:, each, rows[:, :, None], cols[:, None, :]].transpose(0, 1)


def train_classifier(options: argparse.Namespace, build: Callable[[int], nn.Module], name: str) -> int:
    """Trains what `build(classes)` gives; prints the data, the losses and one last line with the test accuracy."""
    if options.smoke:
        for key, value in SMOKE.items():
            if getattr(options, key) in (None, "auto"):
                setattr(options, key, value)
    device = choose_device(options.device)
    images = load_images(options.data, options.seed, options.limit)
    torch.manual_seed(options.seed)
    model = build(images.classes).to(device)
    sizes = ", ".join(f"{len(getattr(images, part)[1]):,} {part}" for part in ("train", "validation", "test"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"data: {images.source}: {sizes} images of {images.classes} classes")
    print(f"model: {name}, {parameters / 1e6:.2f} M parameters, on {device}", flush=True)

    classifier = Classifier(images, model, device, options.augment, options.seed)
    order = EpochOrder(len(images.train[1]), options.batch, options.seed)
    accumulate = max(1, options.ref_batch // order.batch)
    per_epoch = max(1, order.per_epoch // accumulate)

    def evaluate() -> dict[str, float]:
        loss, accuracy = classifier.measure("validation")
        return {"val_loss": loss, "val_acc": accuracy}

    precision = Precision(options.precision, device)
    settings = {k: v for k, v in vars(options).items() if k not in ("checkpoint", "resume", "report", "save_every")}
    trainer = Trainer(
        model,
        torch.optim.AdamW(
            model.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=options.weight_decay
        ),
        classifier.loss,
        lambda number: classifier.batch(order, number),
        steps=math.ceil(options.max_epochs * per_epoch),
        schedule=warmup_cosine(options.linear_warmup_ratio),
        precision=precision,
        accumulate=accumulate,
        evaluate=evaluate,
        evaluate_every=per_epoch,
        **saving_of(options),
        settings={**settings, "source": images.source},
    )
    trainer.run()
    if trainer.stopped:
        return 128 + trainer.stopped
    model.eval()
    with torch.no_grad(), precision.autocast():
        test_loss, test_accuracy = classifier.measure("test")
    baseline = None if options.no_baseline else classifier.softmax_regression(2 if options.smoke else 8)
    report = {
        "program": name,
        "source": images.source,
        "device": str(device),
        "precision": precision.name,
        "parameters": parameters,
        "options": settings,
        "train": trainer.train,
        "validation": trainer.evaluations,
        "seconds": trainer.seconds,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "softmax_regression_accuracy": baseline,
    }
    if options.report:
        write_report(options.report, report)
    beside = "" if baseline is None else f", softmax regression on the pixels {baseline:.4f}"
    print(
        f"{name}: test accuracy {test_accuracy:.4f}, loss {test_loss:.4f}{beside}, {trainer.seconds:.0f} s of training"
    )
    return 0
