"""The report of the matrix: how many cases each bias was tested in."""

from collections import Counter


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
