"""Puts what check.sh left in a folder into one record; fails if anything failed, is missing, or no test ran.

record.py OUT                     OUT/gpu-tests.json: counts, sanitizers, commit, digest of the CUDA sources
record.py OUT --results FOLDER    and, if the record is whole and green, copies it and both benchmarks to FOLDER
                                  as {gpu-tests,attention-cuda,blocks-cuda}-<gpu>-<date>.json
"""

import argparse
import datetime
import json
import pathlib
import sys
from collections import Counter

import sources

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import junit  # noqa: E402

TOOLS = {"memcheck", "racecheck", "initcheck", "synccheck"}
BENCHMARKS = ("attention-cuda", "blocks-cuda")


def suite(case, path):
    """The test file of a Python test; the test suite of a C++ one."""
    name = case.get("classname")
    return name.split(".")[-1] if path.name.startswith("python") else name.split("/")[-1]


def counts(paths):
    """Counts of all tests and of each suite, and the names of those that failed."""
    total, by_suite, failed = Counter(passed=0, failed=0, skipped=0), {}, []
    for path, case, result in junit.cases(paths):
        total[result] += 1
        by_suite.setdefault(suite(case, path), Counter())[result] += 1
        if result == "failed":
            failed.append(junit.name(case))
    return {**total, "suites": by_suite, "failures": sorted(failed)}


def gather(folder, commit, root):
    """The record, and what is wrong with it."""
    import torch

    record = {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "commit": commit,
        "sources": sources.digest(root),
    }
    wrong = []
    for part in ("kernels", "python"):
        record[part] = counts(sorted(folder.glob(f"{part}-*.xml")))
        print(part, {name: record[part][name] for name in ("passed", "failed", "skipped")})
        wrong += [f"{part}: {name} failed" for name in record[part]["failures"]]
        if record[part]["passed"] == 0:
            wrong.append(f"{part}: no test passed")
    record["sanitizer"] = [json.loads(path.read_text()) for path in sorted(folder.glob("sanitizer/*.json"))]
    for tool in record["sanitizer"]:
        if tool["exit"] != 0 or tool["errors"] != 0 or tool["warnings"] != 0 or not tool["tests_passed"]:
            wrong.append(f"{tool['tool']}: {tool}")
    wrong += [f"{name}: not run" for name in sorted(TOOLS - {tool["tool"] for tool in record["sanitizer"]})]
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        if not path.exists():
            wrong.append(f"{name}: not run")
            continue
        benchmark = json.loads(path.read_text())
        wrong += [f"{name}: {failure}" for failure in benchmark["failures"]]
        if benchmark["commit"] != commit:
            wrong.append(f"{name}: of commit {benchmark['commit']}, expected {commit}")
    if not commit or commit.endswith("dirty"):
        wrong.append(f"commit is '{commit}', expected one that holds all that was built")
    return record, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(), help="the sources that were built")
    parser.add_argument("--results", type=pathlib.Path)
    options = parser.parse_args()
    record, wrong = gather(options.folder, options.commit, options.root)
    (options.folder / "gpu-tests.json").write_text(json.dumps(record, indent=1) + "\n")
    for line in wrong:
        print(f"  {line}")
    if options.results and not wrong:
        options.results.mkdir(parents=True, exist_ok=True)
        gpu = record["gpu"].split()[-1].lower()
        for name in ("gpu-tests", *BENCHMARKS):
            text = (options.folder / f"{name}.json").read_text()
            (options.results / f"{name}-{gpu}-{record['date']}.json").write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
