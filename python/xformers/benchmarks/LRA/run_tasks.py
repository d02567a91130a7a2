"""Trains one attention on one task of the Long Range Arena, tests it, and leaves test_eval_summary.json.

python -m xformers.benchmarks.LRA.run_tasks --attention nystrom --task listops --checkpoint_dir runs"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from xformers.components.attention import ATTENTION_REGISTRY
from xformers.helpers.training import (
    EpochOrder,
    Precision,
    Trainer,
    UserError,
    choose_device,
    load_checkpoint,
    one_cycle_linear,
    program,
    write_json,
)

from .data import load_part
from .model import SequenceClassifier
from .settings import DEBUG, Task, load_settings
from .tasks import COMPARABLE

Part = dict[str, torch.Tensor]


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="run_tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--attention", choices=sorted(ATTENTION_REGISTRY), required=True)
    arguments.add_argument("--task", choices=[task.value for task in Task], required=True)
    arguments.add_argument("--config", help="settings of all tasks; else the package's config.json")
    arguments.add_argument("--checkpoint_dir", type=Path, default=Path("lra"), help="for <task>__<attention>/")
    arguments.add_argument("--checkpoint_path", type=Path, help="weights to test, with --skip_train")
    arguments.add_argument("--skip_train", action="store_true", help="test what --checkpoint_path holds")
    arguments.add_argument("--datasets", type=Path, default=Path("datasets"), help="of <task>.{train,dev,test}.pickle")
    arguments.add_argument("--debug", action="store_true", help="tiny: three steps on sequences of 64")
    arguments.add_argument("--world_size", type=int, default=1, help="processes; one")
    arguments.add_argument(
        "--sweep_parameters", help="settings in place of the file's, as '{\"training.warmup\": 500}'"
    )
    arguments.add_argument("--limit", type=int, help="examples of a part at most; they are made for this run alone")
    arguments.add_argument("--steps", type=int, help="instead of num_train_steps")
    arguments.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments.add_argument("--seed", type=int, default=1234)
    arguments.add_argument(
        "--save_every", type=int, default=500, help="steps between saves; a run that is there goes on"
    )
    return arguments


def result_folder(checkpoint_dir: Path, task: str, attention: str) -> Path:
    return checkpoint_dir / f"{task}__{attention}"


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = dict(DEBUG) if options.debug else {}
    if options.sweep_parameters:
        try:
            changes |= json.loads(options.sweep_parameters)
        except (ValueError, TypeError) as error:
            raise UserError(f"--sweep_parameters: {error}, expected a JSON object of settings") from error
    if options.steps is not None:
        changes["training.num_train_steps"] = options.steps
        changes.setdefault("training.warmup", max(1, options.steps // 10))
    return load_settings(options.task, options.config, changes)


def inputs_of(part: Part) -> list[torch.Tensor]:
    return [part[key] for key in ("input_ids_0", "input_ids_1") if key in part]


@torch.no_grad()
def measured(model: SequenceClassifier, part: Part, batch: int) -> dict[str, float]:
    """Loss and share of right answers."""
    device = next(model.parameters()).device
    model.eval()
    labels, loss, right = part["label"], 0.0, 0
    for begin in range(0, len(labels), batch):
        logits = model(*(ids[begin : begin + batch].to(device) for ids in inputs_of(part))).float().cpu()
        wanted = labels[begin : begin + batch]
        loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
        right += int((logits.argmax(-1) == wanted).sum())
    return {"loss": loss / len(labels), "accu": right / len(labels)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The contents of test_eval_summary.json."""
    if options.world_size != 1:
        raise UserError(f"--world_size is {options.world_size}, expected 1.  Fix: one process per task and attention")
    if options.skip_train and not options.checkpoint_path:
        raise UserError("--skip_train needs weights to test.  Fix: pass --checkpoint_path")
    settings = settings_of(options)
    training, seq_len = settings["training"], settings["model"]["common"]["seq_len"]
    limit = 16 if options.debug and options.limit is None else options.limit
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    try:
        model = SequenceClassifier(settings, options.attention).to(device)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{options.attention} can't be built for {options.task}: {error}") from error
    folder = result_folder(options.checkpoint_dir, options.task, options.attention)
    parts, sources = {}, {}
    for part in ("test",) if options.skip_train else ("train", "dev", "test"):
        parts[part], sources[part] = load_part(options.datasets, options.task, part, seq_len, limit)
    comparable = options.task in COMPARABLE and limit is None or not sources["test"].startswith("made")
    print(f"{options.task}, {options.attention} on {device}; data: {sources['test']}")
    if not comparable:
        print("results are not comparable with published ones: the data is this task's only in kind, or only a part")

    batch, trainer = training["batch_size"], None
    if options.skip_train:
        model.load_state_dict(load_checkpoint(options.checkpoint_path)["model"])
    else:
        train, steps = parts["train"], training["num_train_steps"]
        order = EpochOrder(len(train["label"]), batch, options.seed)

        def loss(chosen: torch.Tensor) -> torch.Tensor:
            logits = model(*(ids[chosen].to(device) for ids in inputs_of(train)))
            return F.cross_entropy(logits.float(), train["label"][chosen].to(device))

        def evaluate() -> dict[str, float]:
            return {f"dev_{name}": value for name, value in measured(model, parts["dev"], batch).items()}

        trainer = Trainer(
            model,
            torch.optim.AdamW(
                model.parameters(),
                training["learning_rate"],
                betas=tuple(training["betas"]),
                eps=training["eps"],
                weight_decay=training["weight_decay"],
            ),
            loss,
            order,
            steps=steps,
            schedule=one_cycle_linear(min(training["warmup"] / steps, 0.99)),
            precision=Precision("auto" if training["mixed_precision"] else "32", device),
            accumulate=training["gradient_accumulation"],
            evaluate=evaluate,
            evaluate_every=training["eval_frequency"],
            checkpoint=folder / "checkpoint.pt",
            resume=True,
            save_every=options.save_every,
            settings={"task": options.task, "attention": options.attention, "settings": json.dumps(settings)},
        )
        trainer.run()
        if trainer.stopped:
            raise SystemExit(128 + trainer.stopped)
    test = measured(model, parts["test"], batch)
    spread = math.sqrt(test["accu"] * (1 - test["accu"]) / len(parts["test"]["label"]))
    summary = {
        "task": options.task,
        "attention": options.attention,
        "test_accu_mean": test["accu"],
        "test_accu_standard_error": spread,
        "test_loss": test["loss"],
        "comparable": comparable,
        "data": sources,
        "settings": settings,
        "seed": options.seed,
        "device": str(device),
        "train_seconds": trainer.seconds if trainer else None,
        "train_steps": trainer.step if trainer else None,
        "evaluations": trainer.evaluations if trainer else [],
    }
    write_json(folder / "test_eval_summary.json", summary)
    print(
        f"{options.task} {options.attention}: test accuracy {test['accu']:.4f} +- {spread:.4f}, loss {test['loss']:.4f}"
    )
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    run(parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    program(main)
