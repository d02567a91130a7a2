"""Settings of the Python tests. They need the built package: PYTHONPATH=<build>/python (`make test` sets it)."""

import logging
import os

import hypothesis
import pytest
from devices import seed

import xformers  # first, so that its guards are in force

if not hasattr(xformers, "ops"):  # the folder of the C++ sources, found from the repository's root
    pytest.exit("xformers is not built or not on the path: run `make test`, or set PYTHONPATH=<build>/python", 2)

logging.getLogger("torch.__trace").propagate = False  # thousands of empty lines in the report of a failure

# The same examples in every run; a failure prints how to repeat it.
hypothesis.settings.register_profile("xformers", max_examples=60, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("xformers")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")  # PyTorch's own use of it


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config, items):
    """XFORMERS_TEST_SHARD=i/n runs every n-th test, beginning with test i."""
    if shard := os.environ.get("XFORMERS_TEST_SHARD"):
        index, count = (int(x) for x in shard.split("/"))
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % count != index])
        items[:] = items[index::count]


@pytest.fixture(autouse=True)
def _seeded():
    seed(0)
