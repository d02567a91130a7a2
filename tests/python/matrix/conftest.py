"""`--case`, and the report of the matrix: how many cases each bias was tested in."""

from collections import Counter

import pytest
from matrix_cases import SHORT


def means(case, item):
    """Whether the case is one of this test's."""
    if item.function.__name__ != "test_matrix":
        return False
    row, dtype, device = (item.callspec.params[name] for name in ("row", "dtype", "device"))
    bias, _, rest = case.rpartition(":")
    return bias == row.name and rest.split(",")[0] == SHORT[dtype] and device in rest.split(",")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    case = config.getoption("--case", None)
    if case:
        wanted = [item for item in items if means(case, item)]
        if not wanted:
            raise pytest.UsageError(f"--case={case} names no bias, dtype and device of the matrix")
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", "") == "call" and "matrix_bias" in properties:
                counts[properties["matrix_bias"]] += properties["matrix_cases"]
    if counts:
        terminalreporter.section(f"matrix: {len(counts)} biases, {sum(counts.values())} cases")
        for bias, count in counts.items():
            terminalreporter.line(f"{count:6d}  {bias}")
