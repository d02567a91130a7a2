"""Configs for Hydra, which is optional (PyPI: hydra-core)."""

from typing import Any


def import_xformer_config_schema() -> None:
    """Stores the config classes of all registries as `xformers/{ff,pe,attention}/<name>_schema` in Hydra's store.

    ImportError without Hydra. A class that Hydra can not read (a field of a type of its own) is left out.
    """
    try:
        from hydra.core.config_store import ConfigStore  # type: ignore[import-not-found]
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
            try:
                store.store(name=f"{name}_schema", node=item.config, group=f"xformers/{group}")
            except (OmegaConfBaseException, ValueError):
                continue


__all__ = ["import_xformer_config_schema"]
