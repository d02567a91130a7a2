"""Builds a model from the YAML files of conf/ and prints it: by Hydra where it is installed, else by a small loader."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from loader import compose, instantiate
from xformers.helpers.training import UserError, program
from xformers.helpers.training import write_json as write_report

CONF = Path(__file__).resolve().parent / "conf"

parser = argparse.ArgumentParser(
    description=__doc__,
    epilog="build.py emb=128 stack@xformer.stack_configs.encoder_local=encoder_random xformer.weight_init=small",
)
parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="values, and other files of a group")
parser.add_argument("--loader", choices=["auto", "hydra", "small"], default="auto")
parser.add_argument("--config_dir", type=Path, default=CONF)
parser.add_argument("--config_name", default="config")
parser.add_argument("--report", metavar="FILE.json", help="the whole config, sizes and shapes")
parser.add_argument("--smoke", action="store_true", help="a narrow model")


def by_hydra(folder: Path, name: str, overrides: list[str]) -> dict:
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra.initialize_config_dir(str(folder.resolve()), version_base="1.2"):
            return OmegaConf.to_container(hydra.compose(name, overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(str(error).split())}.  Fix: the file or the override that it names") from error


def main() -> int:
    options = parser.parse_args()
    kind = options.loader
    if kind == "auto":
        kind = "hydra" if find_spec("hydra") else "small"
    if kind == "hydra" and not find_spec("hydra"):
        raise UserError("hydra is not installed.  Fix: pip install hydra-core, or --loader small")
    overrides = (["emb=32", "seq=64"] if options.smoke else []) + options.overrides
    config = (by_hydra if kind == "hydra" else compose)(options.config_dir, options.config_name, overrides)
    torch.manual_seed(42)
    try:
        model = instantiate(config["xformer"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the config builds no model: {error}") from error
    print(f"stacks: {', '.join(config['xformer']['stack_configs'])} (by the {kind} loader)")
    print(model)
    ids = torch.randint(config["vocab"], (2, config["seq"]))
    with torch.no_grad():
        out = model.eval()(ids)
    parameters = sum(p.numel() for p in model.parameters())
    report = {
        "loader": kind,
        "config": config,
        "stacks": list(config["xformer"]["stack_configs"]),
        "parameters": parameters,
        "in": list(ids.shape),
        "out": list(out.shape),
    }
    if options.report:
        write_report(options.report, report)
    print(
        f"build_model: {parameters / 1e6:.2f} M parameters, {json.dumps(report['in'])} -> {json.dumps(report['out'])}"
    )
    return 0


program(main)
