"""A plain training loop with what a run on real data needs: accumulation, mixed precision, schedules, exact resumption,
a progress bar and a report. The examples and xformers.benchmarks.LRA train with it."""

from .errors import UserError, program
from .files import load_checkpoint, save_checkpoint, write_json
from .loop import Trainer
from .order import EpochOrder
from .progress import Progress
from .schedules import one_cycle_linear, warmup_cosine
from .settings import Precision, choose_device, saving_of, training_parser

__all__ = [
    "EpochOrder",
    "Precision",
    "Progress",
    "Trainer",
    "UserError",
    "choose_device",
    "load_checkpoint",
    "one_cycle_linear",
    "program",
    "save_checkpoint",
    "saving_of",
    "training_parser",
    "warmup_cosine",
    "write_json",
]
