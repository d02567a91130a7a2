"""The programs of xformers.benchmarks run (0.0.11: the MLP benchmark)."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["mlp", "encoder", "pytorch_transformer", "revnet"])
def test_runs(name, capsys):
    program = importlib.import_module(f"xformers.benchmarks.benchmark_{name}")
    program.main(["--smoke", "--samples", "1", "--device", "cpu"])
    assert " ms" in capsys.readouterr().out
