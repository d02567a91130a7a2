"""Options and reports of all Python tests."""

import os
import sys

# Two processes of tests, each with a thread per core: one that spins while it waits keeps the processor from one that
# works. The OpenMP library reads this when torch is loaded, and this file is the first that pytest reads.
if "OMP_WAIT_POLICY" not in os.environ:
    assert "torch" not in sys.modules, "torch was loaded before tests/conftest.py could set OMP_WAIT_POLICY"
    os.environ["OMP_WAIT_POLICY"] = "passive"


def pytest_addoption(parser):
    parser.addoption("--case", help="run one case of the matrix alone, in the words that a failure prints")


def pytest_sessionfinish():
    """Leaves the largest error / budget of each family in the file that XFORMERS_TEST_RATIOS names."""
    path, reference = os.environ.get("XFORMERS_TEST_RATIOS"), sys.modules.get("attention_reference")
    if path and reference and reference.RATIOS:
        lines = [f"{family} {quantity} {ratio:.4f}\n" for (family, quantity), ratio in reference.RATIOS.items()]
        with open(path, "a") as file:
            file.write("".join(lines))
