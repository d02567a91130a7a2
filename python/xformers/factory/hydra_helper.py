"""Configs for Hydra, which is optional (PyPI: hydra-core)."""

import dataclasses
import typing
from typing import Any


def _readable(config: type, structured: Any, error: type[Exception]) -> type:
    """The config class; where it has fields of types that Hydra does not know (modules, tensors, unions), one with the
    same fields of which these take anything."""

    def reads(cls: type) -> bool:
        try:
            structured(cls)
        except (error, ValueError):
            return False
        return True

    if reads(config):
        return config
    hints = typing.get_type_hints(config)
    fields: list[Any] = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type,unused-ignore]
        known = reads(dataclasses.make_dataclass("One", [(field.name, hints[field.name])]))
        default = [] if field.default is dataclasses.MISSING else [field.default]
        fields.append((field.name, hints[field.name] if known else Any, *default))
    return dataclasses.make_dataclass(config.__name__, fields)


def import_xformer_config_schema() -> None:
    """Stores the config classes of all registries as `xformers/{ff,pe,attention}/<name>_schema` in Hydra's store.

    Fields of types that Hydra does not know, such as modules, take anything. ImportError without Hydra.
    """
    try:
        from hydra.core.config_store import ConfigStore  # type: ignore[import-not-found]
        from omegaconf import OmegaConf  # type: ignore[import-not-found]
        from omegaconf.errors import OmegaConfBaseException  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "import_xformer_config_schema: hydra is missing, expected an install of it.  Fix: pip install hydra-core."
        ) from error

    from xformers.components.attention import ATTENTION_REGISTRY
    from xformers.components.feedforward import FEEDFORWARD_REGISTRY
    from xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY

    store = ConfigStore.instance()
    registries: dict[str, Any] = {
        "ff": FEEDFORWARD_REGISTRY,
        "pe": POSITION_EMBEDDING_REGISTRY,
        "attention": ATTENTION_REGISTRY,
    }
    for group, registry in registries.items():
        for name, item in registry.items():
            schema = _readable(item.config, OmegaConf.structured, OmegaConfBaseException)
            store.store(name=f"{name}_schema", node=schema, group=f"xformers/{group}")


__all__ = ["import_xformer_config_schema"]
