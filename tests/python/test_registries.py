"""Registries and builders: names, configs, what is unknown, and whose dicts stay as they are."""

import copy
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
from xformers.components import attention, feedforward, positional_embedding
from xformers.utils import Item, generate_matching_config, get_registry_decorator, import_all_modules

import xformers

REGISTRIES = {
    "attention": (
        attention.ATTENTION_REGISTRY,
        attention.register_attention,
        attention.build_attention,
        attention.Attention,
        attention.AttentionConfig,
    ),
    "feedforward": (
        feedforward.FEEDFORWARD_REGISTRY,
        feedforward.register_feedforward,
        feedforward.build_feedforward,
        feedforward.Feedforward,
        feedforward.FeedforwardConfig,
    ),
    "positional_embedding": (
        positional_embedding.POSITION_EMBEDDING_REGISTRY,
        positional_embedding.register_positional_embedding,
        positional_embedding.build_positional_embedding,
        positional_embedding.PositionEmbedding,
        positional_embedding.PositionEmbeddingConfig,
    ),
}


@pytest.fixture(params=REGISTRIES)
def mine(request):
    """(build, register, a class of the user's that is registered as "mine")"""
    registry, register, build, base, config = REGISTRIES[request.param]

    @dataclass
    class MineConfig(config):
        width: int
        depth: int = 3

    class Mine(base):
        def __init__(self, width, depth=4, height=5, dropout=0.25, **kwargs):
            super().__init__()
            self.given = (width, depth, height, dropout)

        def forward(self, x):
            return x

    before, names = dict(registry), sys.modules[f"xformers.components.{request.param}._registry"]
    (class_names,) = (value for name, value in vars(names).items() if name.endswith("CLASS_NAMES"))
    register("mine", MineConfig)(Mine)
    yield build, register, Mine
    registry.clear()
    registry.update(before)
    class_names.discard("Mine")


def test_a_class_of_the_user_s(mine):
    build, _, cls = mine
    config = {"name": "mine", "width": 7, "dropout": None, "num_heads": 8}
    before = copy.deepcopy(config)
    for _ in range(2):
        built = build(config)
        assert type(built) is cls and built.given == (7, 3, 5, 0.25)  # the config's own default goes first
    assert config == before and json.loads(json.dumps(config)) == before


def test_a_config_object(mine):
    build, _, cls = mine
    config_class = registry_of(build)["mine"].config
    config = generate_matching_config({"name": "mine", "width": 7, "depth": None}, config_class)
    assert config.dropout is None if hasattr(config, "dropout") else config.dim_model is None
    assert build(config).given == (7, 4, 5, 0.25) and config.depth is None


def registry_of(build):
    return next(row[0] for row in REGISTRIES.values() if row[2] is build)


def test_names_that_are_taken(mine):
    build, register, cls = mine
    with pytest.raises(ValueError, match="'mine' is that of Mine already"):
        register("mine")(type("Other", (cls,), {}))
    with pytest.raises(ValueError, match="a class Mine is registered already"):
        register("other")(cls)
    with pytest.raises(ValueError, match="expected a subclass of"):
        register("other")(torch.nn.Linear)
    assert "other" not in registry_of(build)


def test_unknown_names(mine, caplog):
    build = mine[0]
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError, match="did you mean 'mine'"):
        build({"name": "mien"})
    assert "mien" in caplog.text
    with pytest.raises(KeyError, match="name is 'None'"):
        build({})


def test_unknown_options_are_warned_about_once(mine):
    build = mine[0]
    kind = next(name for name, row in REGISTRIES.items() if row[2] is build)
    option = f"widht_{kind}"[:5]  # "widht"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            build({"name": "mine", "width": 1, option: 2, "seq_len": 3, "max_seq_len": 4})
    (warning,) = caught
    assert "'widht' is unknown and has no effect; did you mean 'width'?" in str(warning.message)


def test_decorator_of_another_registry():
    registry, names = {}, set()
    register = get_registry_decorator(registry, names, torch.nn.Module, dict)
    linear = register("linear")(torch.nn.Linear)
    assert linear is torch.nn.Linear and registry == {"linear": Item(torch.nn.Linear, dict)} and names == {"Linear"}


def test_import_all_modules(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_all_modules(str(package), "some_package")
    assert sys.modules["some_package.first"].VALUE == 1


CONSTRUCT = """
import torch, xformers.components
from xformers.components.attention import Attention
class Mine(Attention):
    def forward(self, q, k, v): return v
Mine()
"""


@pytest.mark.parametrize("switch", [None, "0", "1"])
def test_warnings_only_with_the_switch(switch):
    """0.0.22: the classes are deprecated upstream; here they are maintained."""
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(xformers.__file__))}
    env.pop("XFORMERS_DEPRECATION_WARNINGS", None)
    if switch:
        env["XFORMERS_DEPRECATION_WARNINGS"] = switch
    result = subprocess.run([sys.executable, "-W", "always", "-c", CONSTRUCT], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("FutureWarning") == (2 if switch == "1" else 0), result.stderr


def test_padding_to_a_mask():
    x, mask = torch.ones(2, 3, 4), torch.ones(5, 5)
    padded = attention.Attention._maybe_pad_sequence(x, mask)
    assert padded.shape == (2, 5, 4) and padded[:, 3:].eq(0).all() and padded[:, :3].eq(1).all()
    assert attention.Attention._maybe_pad_sequence(padded, mask) is padded
    with pytest.raises(AssertionError, match="has length 5, expected at most 4"):
        attention.Attention._maybe_pad_sequence(padded, mask[:4, :4])
