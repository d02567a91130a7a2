"""examples/build_model: the YAML stacks build a model, by Hydra and by the small loader alike."""

import importlib.util
import json

import pytest
from programs import ROOT
from python_programs import run

FOLDER = ROOT / "examples" / "build_model"
PATH = "build_model/build.py"
if importlib.util.find_spec("yaml") is None:
    pytest.skip("PyYAML is not installed.  Fix: pip install -r requirements-examples.txt", allow_module_level=True)


@pytest.fixture
def loader(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import loader

    return loader


def test_smoke(tmp_path):
    report, last = smoke_report(tmp_path, "--loader", "small")
    assert report["stacks"] == ["encoder_local", "encoder_random", "decoder_nystrom_favor"]
    assert (report["in"], report["out"]) == ([2, 64], [2, 64, 32])
    assert "[2, 64] -> [2, 64, 32]" in last


def smoke_report(tmp_path, *arguments):
    done = run(PATH, "--smoke", "--report", tmp_path / "report.json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "report.json").read_text()), done.stdout.strip().splitlines()[-1]


def test_published_size(loader):
    import torch

    config = loader.compose(FOLDER / "conf", "config", [])
    stacks = config["xformer"]["stack_configs"]
    assert [stack["num_layers"] for stack in stacks.values()] == [4, 4, 3]
    assert stacks["decoder_nystrom_favor"]["position_encoding_config"]["vocab_size"] == 64
    model = loader.instantiate(config["xformer"]).eval()
    with torch.no_grad():
        assert model(torch.randint(64, (2, 1024))).shape == (2, 1024, 384)


OVERRIDES = {
    "none": [],
    "values": ["emb=128", "xformer.stack_configs.encoder_local.num_layers=2", "+xformer.weight_init=small"],
    "another stack": ["stack@xformer.stack_configs.encoder_local=encoder_random", "seq=32"],
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_hydra_says_the_same(name, loader):
    hydra = pytest.importorskip("hydra", reason="hydra-core is not installed: pip install -r requirements-examples.txt")
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(FOLDER / "conf"), version_base="1.2"):
        theirs = OmegaConf.to_container(hydra.compose("config", OVERRIDES[name]), resolve=True)
    assert loader.compose(FOLDER / "conf", "config", OVERRIDES[name]) == theirs


@pytest.mark.parametrize(
    "override, says",
    [
        ("embedding=3", "there is no embedding"),
        ("emb", "expected NAME=VALUE"),
        ("stack@xformer.stack_configs.encoder_local=nothing", "one of base_encoder, decoder_nystrom_favor"),
        ("stack@elsewhere=encoder_local", "not among the defaults"),
        ("xformer._target_=xformers.factory.Nothing", "Nothing"),
        ("xformer.stack_configs.encoder_local.residual_norm_style=none", "builds no model"),
        ("emb=${nothing}", "there is no nothing"),
    ],
)
def test_wrong_overrides(override, says, loader, tmp_path):
    from xformers.helpers.training import UserError

    if "builds no" in says:
        done = run(PATH, "--smoke", "--loader", "small", override)
        assert done.returncode == 1 and says in done.stderr
        return
    with pytest.raises(UserError, match=says):
        loader.instantiate(loader.compose(FOLDER / "conf", "config", [override])["xformer"])


def test_damaged_yaml(loader, tmp_path):
    from xformers.helpers.training import UserError

    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="valid YAML"):
        loader.compose(tmp_path, "config", [])
    (tmp_path / "config.yaml").write_text("- 1")
    with pytest.raises(UserError, match="holds list"):
        loader.compose(tmp_path, "config", [])
