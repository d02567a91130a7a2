"""As much of Hydra as these files need: `defaults`, `group@package=option` and `name=value` overrides, `${name}`,
`_target_`."""

import importlib
import re
from pathlib import Path
from typing import Any

from xformers.helpers.training import UserError

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def _parsed(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UserError("PyYAML is not installed.  Fix: pip install pyyaml, or hydra-core") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}.  Fix: valid YAML") from error


def _placed(value: Any, package: str) -> dict[str, Any]:
    """{"a": {"b": value}} for the package "a.b"."""
    for key in reversed(package.split(".") if package else []):
        value = {key: value}
    return value


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` wins; dicts are merged."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(result.get(key), dict) and isinstance(value, dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _file(root: Path, group: str, name: str, choices: dict[str, str]) -> dict[str, Any]:
    """The contents of <root>/<group>/<name>.yaml over those of its defaults. `choices` replaces options of the first
    file's defaults, and is emptied of what was found."""
    path = root / group / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"there is no {path}.  Fix: one of {there}")
    own = _parsed(path.read_text(), str(path)) or {}
    if not isinstance(own, dict):
        raise UserError(f"{path} holds {type(own).__name__}, expected names and values.  Fix: valid settings")
    defaults = own.pop("defaults", [])
    result: dict[str, Any] = {}
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            part = own
        elif isinstance(entry, str):
            part = _file(root, group, entry, {})
        else:
            ((key, option),) = entry.items()
            which, _, package = key.partition("@")
            below = which[1:] if which.startswith("/") else "/".join(filter(None, (group, which)))
            part = _placed(_file(root, below, choices.pop(key, option), {}), package)
        result = _merged(result, part)
    return result


def _at(config: dict[str, Any], path: str, what: str) -> Any:
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{what}: there is no {path}.  Fix: one of {', '.join(config)}")
        value = value[key]
    return value


def _resolved(value: Any, config: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(one, config) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, config) for one in value]
    if isinstance(value, str):
        if whole := REFERENCE.fullmatch(value):
            return _resolved(_at(config, whole[1], value), config)
        return REFERENCE.sub(lambda m: str(_resolved(_at(config, m[1], value), config)), value)
    return value


def compose(root: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """The config with its defaults, overrides and references resolved. UserError names what is wrong."""
    choices, values = {}, []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: expected NAME=VALUE.  Fix: such as emb=128")
        if "@" in key:
            choices[key] = value
        else:
            values.append((key, _parsed(value, word)))
    config = _file(root, "", name, choices)
    if choices:
        raise UserError(f"{', '.join(choices)} is not among the defaults of {name}.yaml.  Fix: a line of them")
    for key, value in values:
        added = key.startswith("+")
        if not added:
            _at(config, key, key)
        config = _merged(config, _placed(value, key.lstrip("+")))
    return _resolved(config, config)


def instantiate(config: dict[str, Any]) -> Any:
    """Calls what `_target_` names with the other keys."""
    arguments = dict(config)
    target = arguments.pop("_target_", None)
    if target is None:
        raise UserError("xformer._target_ is missing, expected what to build.  Fix: xformers.factory.xFormer")
    module, _, name = target.rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {target}: {error}.  Fix: a class or function that can be imported") from error
    return build(**arguments)
