"""Configs of the components in Hydra's store. Hydra is optional: `make test` installs it apart for this file."""

import sys
from dataclasses import dataclass

import pytest
from xformers.components.attention import ATTENTION_REGISTRY
from xformers.components.feedforward import FEEDFORWARD_REGISTRY
from xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from xformers.factory.hydra_helper import import_xformer_config_schema
from xformers.utils import Item

REGISTRIES = {"ff": FEEDFORWARD_REGISTRY, "pe": POSITION_EMBEDDING_REGISTRY, "attention": ATTENTION_REGISTRY}


@pytest.fixture
def store():
    return pytest.importorskip("hydra.core.config_store").ConfigStore.instance()


def test_every_config_has_a_schema(store):
    import_xformer_config_schema()
    for group, registry in REGISTRIES.items():
        stored = store.repo["xformers"][group]
        assert {f"{name}_schema.yaml" for name in registry} <= set(stored)
        for name, item in registry.items():
            node = stored[f"{name}_schema.yaml"].node
            assert set(node) == set(item.config.__dataclass_fields__), name


def test_a_schema_checks_what_is_given(store):
    omegaconf = pytest.importorskip("omegaconf")
    import_xformer_config_schema()
    schema = store.repo["xformers"]["ff"]["MLP_schema.yaml"].node
    filled = omegaconf.OmegaConf.merge(schema, {"name": "MLP", "hidden_layer_multiplier": 2})
    assert filled.hidden_layer_multiplier == 2
    with pytest.raises(omegaconf.errors.OmegaConfBaseException):
        omegaconf.OmegaConf.merge(schema, {"hidden_layer_multiplier": "wide"})
    with pytest.raises(omegaconf.errors.OmegaConfBaseException):
        omegaconf.OmegaConf.merge(schema, {"hidden_layers": 2})


@dataclass
class Odd:
    name: str
    layer: memoryview
    width: int = 3


def test_fields_that_hydra_does_not_know_take_anything(store, monkeypatch):
    omegaconf = pytest.importorskip("omegaconf")
    monkeypatch.setitem(FEEDFORWARD_REGISTRY, "odd", Item(constructor=object, config=Odd))
    import_xformer_config_schema()
    schema = store.repo["xformers"]["ff"].pop("odd_schema.yaml").node
    assert omegaconf.OmegaConf.merge(schema, {"name": "odd", "layer": "any"}) == {
        "name": "odd",
        "layer": "any",
        "width": 3,
    }
    with pytest.raises(omegaconf.errors.OmegaConfBaseException):
        omegaconf.OmegaConf.merge(schema, {"width": "wide"})


def test_without_hydra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra.core.config_store", None)
    with pytest.raises(ImportError, match="pip install hydra-core"):
        import_xformer_config_schema()
