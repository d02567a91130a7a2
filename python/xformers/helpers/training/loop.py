"""The loop itself."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .files import load_checkpoint, save_checkpoint
from .progress import Progress
from .settings import Precision


class Trainer:
    """Trains `model` for `steps` steps of `optimizer`, each of `accumulate` batches.

    Arguments:
        loss: of a batch, a scalar; runs under autocast.
        batch: by its number in the whole run. It and `loss` decide alone what a step sees, so a resumed run goes on as
            if it had never stopped, at the same number of threads.
        schedule: factor of each group's learning rate by the share of the run that is done.
        precision: see `Precision`. clip: largest norm of the gradient.
        evaluate: measurements by name; called every `evaluate_every` steps and at the end.
        checkpoint, resume, save_every: a file that holds the run; written every `save_every` steps, at the end, and
            when SIGINT or SIGTERM stop the run after its present step.
        settings: what has to be the same when a run is resumed.

    Attributes: `train` and `evaluations`, lists of dicts with step and seconds; `stopped`, the signal or 0; `seconds`.
    UserError for a loss that is not finite and for a checkpoint of other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Any], torch.Tensor],
        batch: Callable[[int], Any],
        *,
        steps: int,
        schedule: Callable[[float], float],
        precision: Precision,
        accumulate: int = 1,
        clip: float | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        save_every: int = 200,
        settings: Mapping[str, Any] | None = None,
    ):
        self.model, self.optimizer, self.loss, self.batch = model, optimizer, loss, batch
        self.steps, self.accumulate, self.clip = steps, accumulate, clip
        self.schedule, self.precision = schedule, precision
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.checkpoint, self.resume, self.save_every = checkpoint, resume, save_every
        self.settings = {key: str(value) for key, value in (settings or {}).items()}
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.train: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.step, self.seconds, self.stopped = 0, 0.0, 0
        if resume and not checkpoint:
            raise UserError("--resume needs the file to go on from.  Fix: pass --checkpoint")

    def run(self) -> None:
        """To the end, or to the first signal."""
        if self.checkpoint and Path(self.checkpoint).exists():
            if not self.resume:
                raise UserError(
                    f"the checkpoint {self.checkpoint} exists.  Fix: pass --resume to go on from it, or name another"
                )
            self._load(load_checkpoint(self.checkpoint))
        progress = Progress(self.steps, self.step)
        if self.step:
            progress.message(f"resumed {self.checkpoint} at step {self.step} of {self.steps}")
        before, started = self.seconds, time.monotonic()
        with _Signals(self):
            while self.step < self.steps and not self.stopped:
                value = self._step()
                self.seconds = before + time.monotonic() - started
                self.train.append({"step": self.step, "seconds": round(self.seconds, 3), "loss": value})
                progress.show(self.step, f"loss {value:.4f}")
                if self.evaluate_every and self.step % self.evaluate_every == 0 and self.step < self.steps:
                    self._measure(progress)
                if self.checkpoint and self.step % self.save_every == 0:
                    self._save()
        if self.step == self.steps and (not self.evaluations or self.evaluations[-1]["step"] != self.step):
            self._measure(progress)
        if self.checkpoint:
            self._save()
        if self.stopped:
            what = f"; saved {self.checkpoint}, go on with --resume" if self.checkpoint else ""
            progress.message(f"stopped at step {self.step} of {self.steps}{what}")

    def _step(self) -> float:
        self.model.train()
        factor = self.schedule(self.step / self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        total = 0.0
        for part in range(self.accumulate):
            batch = self.batch(self.step * self.accumulate + part)
            with self.precision.autocast():
                loss = self.loss(batch) / self.accumulate
            self.precision.scaler.scale(loss).backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise UserError(f"the loss is {total} at step {self.step}.  Fix: a lower learning rate")
        if self.clip is not None:
            self.precision.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def _measure(self, progress: Progress) -> None:
        if self.evaluate is None:
            return
        self.model.eval()
        random = _random_state()
        with torch.no_grad(), self.precision.autocast():
            values = self.evaluate()
        _set_random_state(random)
        self.evaluations.append({"step": self.step, "seconds": round(self.seconds, 3), **values})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        progress.message(f"step {self.step}  {self.seconds:.0f} s  {shown}")

    def _save(self) -> None:
        assert self.checkpoint is not None
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "random": _random_state(),
            "step": self.step,
            "seconds": self.seconds,
            "train": self.train,
            "evaluations": self.evaluations,
        }
        save_checkpoint(self.checkpoint, state)

    def _load(self, state: dict[str, Any]) -> None:
        saved = state.get("settings")
        if saved != self.settings:
            pairs = saved.items() if isinstance(saved, dict) else []
            other = [f"{k} {v}" for k, v in pairs if self.settings.get(k) != v]
            raise UserError(
                f"{self.checkpoint} is of a run with {', '.join(other) or 'other settings'}.  Fix: pass the same "
                "options, or name another checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.train, self.evaluations = state["train"], state["evaluations"]


def _random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


class _Signals:
    """SIGINT and SIGTERM end the run after its present step, so that what is saved is whole."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self._trainer.stopped = number


__all__ = ["Trainer"]
