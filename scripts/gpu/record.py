"""Sums the reports that check.sh left in a folder into gpu-tests.json there; fails if any test failed or none ran."""

import argparse
import datetime
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

import torch


def outcome(case):
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags or case.get("result") in ("skipped", "suppressed") else "passed"


def suite(case, path):
    """The test file of a Python test; the test suite of a C++ one."""
    name = case.get("classname")
    return name.split(".")[-1] if path.name.startswith("python") else name.split("/")[-1]


def counts(paths):
    """Counts of all tests and of each suite, and the names of those that failed."""
    total, by_suite, failed = Counter(passed=0, failed=0, skipped=0), {}, []
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            result = outcome(case)
            total[result] += 1
            by_suite.setdefault(suite(case, path), Counter())[result] += 1
            if result == "failed":
                failed.append(f"{case.get('classname')}.{case.get('name')}")
    return {**total, "suites": by_suite, "failures": sorted(failed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    record = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "commit": options.commit,
    }
    good = True
    for part in ("kernels", "python"):
        paths = sorted(options.folder.glob(f"{part}-*.xml"))
        if paths:
            record[part] = counts(paths)
            good &= record[part]["passed"] > 0 and not record[part]["failures"]
            print(part, {name: record[part][name] for name in ("passed", "failed", "skipped")})
            print("".join(f"  failed: {name}\n" for name in record[part]["failures"]), end="")
    tools = [json.loads(path.read_text()) for path in sorted(options.folder.glob("sanitizer/*.json"))]
    if tools:
        record["sanitizer"] = tools
        good &= all(tool["exit"] == 0 and tool["errors"] == 0 and tool["tests_passed"] > 0 for tool in tools)
    (options.folder / "gpu-tests.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
