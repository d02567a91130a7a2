"""The programs of xformers.benchmarks run, report, and say what has become slower (0.0.11: the MLP benchmark)."""

import importlib
import json
import pkgutil

import pytest
import xformers.benchmarks
from xformers.benchmarks._sides import Seconds, slower_rows
from xformers.helpers.training import UserError

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(xformers.benchmarks.__path__)
    if module.name.startswith("benchmark_") and "parallel" not in module.name  # tests/python/parallel has that
)
SMOKE = ["--smoke", "--samples", "1", "--device", "cpu"]


def main_of(name):
    return importlib.import_module(f"xformers.benchmarks.{name}").main


def test_upstream_s_are_there():
    wanted = {"core", "sddmm", "indexing", "swiglu", "tiled_matmul", "sp24", "multi_head_dispatch", "mlp", "revnet",
              "nystrom_utils", "encoder", "pytorch_transformer", "vit", "blocksparse", "softmax", "layernorm",
              "dropout", "fused_linear"}  # fmt: skip
    assert {f"benchmark_{name}" for name in wanted} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, capsys, tmp_path):
    main_of(name)([*SMOKE, "--json", str(tmp_path / "rows.json")])
    assert " ms" in capsys.readouterr().out
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["device"] == "cpu" and report["rows"]
    for row in report["rows"]:
        assert len(row["sides"]) > 1 and all(side["seconds"] > 0 for side in row["sides"].values())


def row(seconds, spread=0.0, name="a", **others):
    return {"name": name, "sides": {"ours": {"seconds": seconds, "spread": spread}, **others}}


@pytest.mark.parametrize(
    "now, then, slower",
    [
        (row(1.2), row(1.0), True),
        (row(1.04), row(1.0), False),  # within 5 %
        (row(1.2e-4), row(1.0e-4), False),  # within 30 us
        (row(1.4e-4), row(1.0e-4), True),
        (row(1.2, spread=0.2), row(1.0), False),  # within its noise
        (row(0.5), row(1.0), False),
        (
            row(1.0, eager={"seconds": 9.0, "spread": 0}),
            row(1.0, eager={"seconds": 1.0, "spread": 0}),
            False,
        ),  # a rival
    ],
)
def test_what_is_slower(now, then, slower):
    assert bool(slower_rows([now], {"a": then})) == slower


def test_exit_codes(tmp_path, capsys):
    rows, stored = tmp_path / "rows.json", tmp_path / "stored.json"
    main = main_of("benchmark_nystrom_utils")
    main([*SMOKE, "--json", str(rows)])
    report = json.loads(rows.read_text())

    def compared(factor):
        for entry in report["rows"]:
            for side in entry["sides"].values():
                side["seconds"] *= factor
        stored.write_text(json.dumps(report))
        main([*SMOKE, "--compare", str(stored), "--fail_if_regression"])

    compared(1e3)
    with pytest.raises(SystemExit) as ended:
        compared(1e-9)
    assert ended.value.code == 1 and "slower: " in capsys.readouterr().out
    report["rows"][0]["name"] = "another"
    with pytest.raises(UserError, match="no row of this run"):
        compared(1)
    stored.write_text("{")
    with pytest.raises(UserError, match="expected a file of --json"):
        main([*SMOKE, "--compare", str(stored)])
    with pytest.raises(UserError, match="--fail_if_regression needs"):
        main([*SMOKE, "--fail_if_regression"])


def test_spread_is_of_the_quartiles():
    seconds = Seconds.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert seconds == 3.0 and seconds.spread == 1.5
