"""Settings of the Python tests. They need the built package: PYTHONPATH=<build>/python (`make test` sets it)."""

import hypothesis
import pytest
import torch
import xformers  # first, so that its guards are in force

if not hasattr(xformers, "ops"):  # the folder of the C++ sources, found from the repository's root
    pytest.exit("xformers is not built or not on the path: run `make test`, or set PYTHONPATH=<build>/python", 2)

# The same examples in every run; a failure prints how to repeat it.
hypothesis.settings.register_profile("xformers", max_examples=60, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("xformers")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
