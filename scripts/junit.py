"""Reads JUnit reports, of pytest, gtest.py and GoogleTest. As a program: what came of the tests, in all.

junit.py REPORT... [--ratios FILE]   prints the failed tests and "N passed, N failed, N skipped"; fails unless tests ran
                                     and none failed. FILE holds lines "<family> <quantity> <error / budget>" that
                                     tests left (XFORMERS_TEST_RATIOS): prints the largest of each family.
"""

import argparse
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter


def outcome(case):
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags or case.get("result") in ("skipped", "suppressed") else "passed"


def name(case):
    return f"{case.get('classname')}.{case.get('name')}"


def cases(paths):
    """(path, case, outcome) of every test."""
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            yield path, case, outcome(case)


def largest_ratios(lines):
    """{family: {quantity: largest error / budget}}."""
    families = {}
    for line in lines:
        family, quantity, ratio = line.rsplit(maxsplit=2)
        quantities = families.setdefault(family, {})
        quantities[quantity] = max(quantities.get(quantity, 0.0), float(ratio))
    return families


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=pathlib.Path)
    parser.add_argument("--ratios", type=pathlib.Path)
    options = parser.parse_args()

    if options.ratios and options.ratios.exists():
        print("largest error / budget:")
        for family, quantities in sorted(largest_ratios(options.ratios.read_text().splitlines()).items()):
            print(f"  {family:32s}" + "  ".join(f"{quantity} {ratio:.2f}" for quantity, ratio in quantities.items()))
    count = Counter(passed=0, failed=0, skipped=0)
    for _, case, result in cases(options.reports):
        count[result] += 1
        if result == "failed":
            print(f"failed: {name(case)}")
    print(", ".join(f"{number} {result}" for result, number in count.items()))
    return count["failed"] > 0 or count["passed"] == 0


if __name__ == "__main__":
    sys.exit(main())
