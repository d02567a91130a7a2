"""config.json: what a task's model and training are."""

import copy
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from xformers.helpers.training import UserError

CONFIG = Path(__file__).with_name("config.json")


class Task(str, Enum):
    """The tasks by the names of the command line."""

    Retrieval = "retrieval"
    ListOps = "listops"
    Image = "image"
    PathfinderBaseline = "pathfinder32-curv_baseline"
    PathfinderContour9 = "pathfinder32-curv_contour_length_9"
    PathfinderContour14 = "pathfinder32-curv_contour_length_14"
    Text = "text"


# Small enough for seconds; what --debug takes in place of config.json's.
DEBUG = {
    "model.common.seq_len": 64,
    "model.common.dim_model": 16,
    "model.common.num_heads": 2,
    "model.common.num_layers": 2,
    "training.batch_size": 4,
    "training.num_train_steps": 3,
    "training.eval_frequency": 2,
    "training.warmup": 1,
    "extra_settings.attention.nystrom.num_landmarks": 16,
    "extra_settings.attention.nystrom.conv_kernel_size": 5,
    "extra_settings.attention.favor.dim_features": 16,
}


def load_settings(task: str, config: str | Path | None, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of one task. `changes`: values by path, as "training.learning_rate". UserError for what is not there."""
    path = Path(config) if config else CONFIG
    try:
        of_tasks = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}.  Fix: name a file like {CONFIG}") from error
    if not isinstance(of_tasks, dict) or task not in of_tasks:
        raise UserError(f"{path} has no task {task!r}.  Fix: name a file like {CONFIG}")
    settings = copy.deepcopy(of_tasks[task])
    for name, value in (changes or {}).items():
        *above, last = name.split(".")
        place = settings
        for key in above:
            if not isinstance(place.get(key), dict):
                raise UserError(f"{name} is not among the settings of {task} ({path}).  Fix: {', '.join(place)}")
            place = place[key]
        if last not in place:
            raise UserError(f"{name} is not among the settings of {task} ({path}).  Fix: {', '.join(place)}")
        place[last] = value
    for part, keys in (("training", ("batch_size", "num_train_steps")), ("model", ("common", "num_classes"))):
        for key in keys:
            if key not in settings.get(part, {}):
                raise UserError(f"{path}: {task} has no {part}.{key}.  Fix: add it, as in {CONFIG}")
    return settings


def attention_options(settings: Mapping[str, Any], attention: str) -> dict[str, Any]:
    """The task's options for one attention, which config files of earlier versions had beside or inside of "model"."""
    options: dict[str, Any] = {}
    for place in (settings["model"], settings):
        options |= place.get("extra_settings", {}).get("attention", {}).get(attention, {})
    return options
