"""Options that training programs share, and what they mean."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .errors import UserError


class _Parser(argparse.ArgumentParser):
    """Takes --some-name for --some_name."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if args is None:
            args = sys.argv[1:]
        known = self._option_string_actions

        def named(word: str) -> str:
            name, equals, value = word.partition("=")
            other = "--" + name[2:].replace("-", "_")
            return other + equals + value if name.startswith("--") and name not in known and other in known else word

        return super().parse_known_args([named(word) for word in args], namespace)


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of a run: device, precision, seed, files, --smoke. Names may be written with - or _."""
    parser = _Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    run = parser.add_argument_group("run")
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
    run.add_argument(
        "--precision", choices=["auto", "32", "16", "bf16"], default="auto", help="auto: 16 on a GPU, 32 on the CPU"
    )
    run.add_argument("--seed", type=int, default=42)
    run.add_argument("--smoke", action="store_true", help="a small model for seconds, to see that it runs and learns")
    files = parser.add_argument_group("files")
    files.add_argument("--checkpoint", metavar="FILE", help="where to save the run, and where --resume goes on from")
    files.add_argument("--resume", action="store_true", help="go on from --checkpoint where it exists")
    files.add_argument("--save_every", type=int, default=200, help="steps between saves")
    files.add_argument("--report", metavar="FILE.json", help="where to write curves and results")
    return parser


def saving_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of files say to `Trainer`, as its keywords."""
    return {"checkpoint": options.checkpoint, "resume": options.resume, "save_every": options.save_every}


def choose_device(name: str) -> torch.device:
    """The device of --device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch sees no GPU.  Fix: pass --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


class Precision:
    """Mixed precision: "32" none, "16" fp16 with scaled gradients, "bf16"; "auto" as --precision says."""

    def __init__(self, name: str, device: torch.device):
        self.name = ("16" if device.type == "cuda" else "32") if name == "auto" else name
        self.device = device
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self.name == "16")

    def autocast(self) -> AbstractContextManager[Any]:
        if self.name == "32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.name == "16" else torch.bfloat16)
