"""Several attentions on several tasks, with every combination of some settings, one run after the other.

python -m xformers.benchmarks.LRA.run_grid_search --attention nystrom linformer --task listops text \\
    --sweep training.learning_rate=1e-4,3e-4

What is finished is not run again. Other options go to run_tasks."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xformers.components.attention import ATTENTION_REGISTRY
from xformers.helpers.training import UserError, program

from . import run_tasks
from .settings import Task


def combinations(sweep: Sequence[str]) -> list[dict[str, Any]]:
    """["a=1,2", "b=3"] -> [{"a": 1, "b": 3}, {"a": 2, "b": 3}]"""
    names, values = [], []
    for word in sweep:
        name, equals, listed = word.partition("=")
        try:
            values.append([json.loads(value) for value in listed.split(",")])
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"--sweep {word}: expected a setting and numbers, as training.learning_rate=1e-4,3e-4")
        names.append(name)
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run_grid_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = [task.value for task in Task]
    parser.add_argument("--attention", nargs="+", choices=sorted(ATTENTION_REGISTRY), default=["scaled_dot_product"])
    parser.add_argument("--task", nargs="+", choices=tasks, default=tasks)
    parser.add_argument("--sweep", nargs="*", default=[], metavar="SETTING=V,V", help="of config.json, by path")
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("lra"))
    options, others = parser.parse_known_args(arguments)
    for settings in combinations(options.sweep):
        name = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items())
        folder = options.checkpoint_dir / name if name else options.checkpoint_dir
        for task, attention in itertools.product(options.task, options.attention):
            if (run_tasks.result_folder(folder, task, attention) / "test_eval_summary.json").exists():
                print(f"{task} {attention} {name}: is there already")
                continue
            words = ["--task", task, "--attention", attention, "--checkpoint_dir", str(folder), *others]
            run_tasks.main([*words, *(["--sweep_parameters", json.dumps(settings)] if settings else [])])
    return 0


if __name__ == "__main__":
    program(main)
