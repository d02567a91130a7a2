"""Registries of classes: by name, each with the dataclass that lists its options."""

import dataclasses
import difflib
import importlib
import logging
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSet
from typing import Any, NamedTuple, TypeVar

_logger = logging.getLogger("xformers")
_Class = TypeVar("_Class", bound=type)


class Item(NamedTuple):
    """An entry of a registry."""

    constructor: Any  # the class: it has `from_config`
    config: Any  # the dataclass of its options


def get_registry_decorator(
    class_registry: MutableMapping[str, Item],
    name_registry: MutableSet[str],
    reference_class: type,
    default_config: Any,
) -> Callable[..., Callable[[_Class], _Class]]:
    """`register(name, config=default_config)`, a decorator of classes.

    It adds `Item(class, config)` to `class_registry` under `name`, and the class's name to `name_registry`. ValueError
    for a name or a class's name that is taken, and for a class that is no `reference_class`.
    """

    def register(name: str, config: Any = default_config) -> Callable[[_Class], _Class]:
        def add(cls: _Class) -> _Class:
            kind = reference_class.__name__
            if name in class_registry:
                raise ValueError(
                    f"{kind}: the name {name!r} is that of {class_registry[name].constructor.__name__} already, "
                    "expected a new one.  Fix: register the class under another name."
                )
            if not issubclass(cls, reference_class):
                raise ValueError(
                    f"{kind}: {cls.__name__} derives from {', '.join(base.__name__ for base in cls.__bases__)}, "
                    f"expected a subclass of {kind}.  Fix: derive it from {reference_class.__module__}.{kind}."
                )
            if cls.__name__ in name_registry:
                raise ValueError(
                    f"{kind}: a class {cls.__name__} is registered already, expected a new one.  Fix: rename it."
                )
            class_registry[name] = Item(cls, config)
            name_registry.add(cls.__name__)
            return cls

        return add

    register.__doc__ = (
        f"Decorates a subclass of `{reference_class.__name__}`, which is built by this name from then on, from a "
        "config whose keys are the fields of the dataclass `config`. ValueError: the name, or that of the class, is "
        "taken; the class is no such subclass."
    )
    return register


def field_names(config_class: Any) -> list[str]:
    """The options that a config class lists."""
    return [field.name for field in dataclasses.fields(config_class)]


def generate_matching_config(superset: Mapping[str, Any], config_class: Any) -> Any:
    """A `config_class` of the keys of `superset` that are its fields. Missing fields take the class's default, None
    where it has none. `superset` stays as it is."""

    def value(field: Any) -> Any:
        if field.name in superset:
            return superset[field.name]
        if field.default is not dataclasses.MISSING:
            return field.default
        return None if field.default_factory is dataclasses.MISSING else field.default_factory()

    return config_class(**{field.name: value(field) for field in dataclasses.fields(config_class) if field.init})


def options_of(config: Any) -> dict[str, Any]:
    """The fields of a config that are not None: what a constructor is given, so that its defaults fill the rest."""
    values = {name: getattr(config, name, None) for name in field_names(config)}
    return {name: value for name, value in values.items() if value is not None}


_warned: set[tuple[str, str]] = set()


def warn_unknown_options(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """A UserWarning, once per place and option, for options that nobody reads, with the nearest name that is one."""
    known = set(known)
    for option in given:
        if option in known or (where, option) in _warned:
            continue
        _warned.add((where, option))
        nearest = difflib.get_close_matches(str(option), sorted(known), n=1)
        fix = f"did you mean {nearest[0]!r}?" if nearest else f"its options are {', '.join(sorted(known))}."
        warnings.warn(f"{where}: the option {option!r} is unknown and has no effect; {fix}", UserWarning, stacklevel=4)


# Keys that configs of models carry along for several of their parts: nothing to say where a part doesn't read them.
SHARED_OPTIONS = frozenset(
    "name dim_model dim_features dim_head num_heads seq_len max_seq_len to_seq_len causal dropout bias".split()
)


def build_from_registry(registry: Mapping[str, Item], kind: str, config: Any, filled: Iterable[str] = ()) -> Any:
    """What the registry has under `config["name"]` or `config.name`, built by its `from_config`.

    config: a dict, which stays as it is, or a config dataclass. An unknown name is a KeyError, and logged. Options that
    no entry of the registry and no other part of a model (`SHARED_OPTIONS`, `filled`) knows are warned about, once.
    """
    is_dict = isinstance(config, Mapping)
    name = str(config.get("name") if is_dict else getattr(config, "name", None))
    if name not in registry:
        nearest = difflib.get_close_matches(name, list(registry), n=1)
        fix = f"did you mean {nearest[0]!r}?" if nearest else f"register the class first (register_{kind})."
        names = ", ".join(sorted(registry)) or "none so far"
        message = f"build_{kind}: name is {name!r}, expected one of {names}.  Fix: {fix}"
        _logger.warning(message)
        raise KeyError(message)
    constructor, config_class = registry[name]
    if is_dict:
        known = {*SHARED_OPTIONS, *filled}.union(*(field_names(item.config) for item in registry.values()))
        warn_unknown_options(f"build_{kind}({name!r})", config, known)
        config = generate_matching_config(config, config_class)
    return constructor.from_config(config)


def import_all_modules(root: str, base_module: str) -> None:
    """Imports every module directly in the folder `root`, which is the package `base_module`."""
    for module in pkgutil.iter_modules([str(root)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"{base_module}.{module.name}")


__all__ = ["Item", "generate_matching_config", "get_registry_decorator", "import_all_modules"]
