"""Pools end with the session, whatever happened."""

import pytest
from pool import end_all


@pytest.fixture(scope="session", autouse=True)
def _pools_end():
    yield
    end_all()
