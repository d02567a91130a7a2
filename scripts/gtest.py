"""Runs programs of GoogleTest: many tests in one process, as many processes as there are processors.

gtest.py REPORT PROGRAM...   writes a JUnit report of all of them, prints what failed, and fails if one did.

A process takes some tests that follow one another; those of one name, for all their parameters, are together, because
what one computes the next may use. One that dies, or is silent for too long, fails the test that it was in; the tests
behind it run in another process. So each test is in the report, as if it had run alone.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

FEWEST = 25  # tests of a process, where a program has more
SILENCE = 300  # seconds without a word
BEGINS = re.compile(r"\[ RUN {6}\] (\S+)$")
SKIPS_ALL = "[  SKIPPED ] every test"  # the program's environment is not there (no GPU)
ENDS = re.compile(r"\[ {7}(?P<passed>OK) \] |\[  SKIPPED \] |\[  (?P<failed>FAILED)  \] ")


@dataclass
class Result:
    program: str
    name: str
    seconds: float
    outcome: str  # passed, skipped or failed
    text: str  # what it printed


def names_of(program):
    """The names of a program's tests, in order, without those that are switched off."""
    listed = subprocess.run([program, "--gtest_list_tests"], stdout=subprocess.PIPE, text=True)
    if listed.returncode != 0:
        sys.exit(f"{program} does not list its tests: status {listed.returncode}")
    suite, names = "", []
    for line in listed.stdout.splitlines():
        name = line.split("#")[0].rstrip()
        if line.startswith("  "):
            names.append(suite + name.strip())
        elif name.endswith("."):
            suite = name
    return [name for name in names if "DISABLED_" not in name]


def parts_of(names):
    """Lists of names: those of one test with other parameters stay together."""
    parts, last = [[]], None
    for name in names:
        test = name.rsplit("/", 1)[0] if name.count("/") > 1 or "/" in name.split(".")[1] else name
        if test != last and len(parts[-1]) >= FEWEST:
            parts.append([])
        parts[-1].append(name)
        last = test
    return parts


def run(program, names):
    """Results of these tests, in a process as long as it lives, then in the next."""
    results = []
    while len(results) < len(names):
        results += run_once(program, names[len(results) :])
    return results


def run_once(program, names):
    """Results of the first of these tests: all, or those to the one in which the process ended."""
    results, text, name, start = [], [], None, time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".flags") as flags:
        flags.write("--gtest_filter=" + ":".join(names) + "\n")
        flags.flush()
        command = [program, f"--gtest_flagfile={flags.name}", "--gtest_color=no"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        heard = [time.monotonic()]
        watch = threading.Thread(target=kill_if_silent, args=(process, heard), daemon=True)
        watch.start()
        for line in process.stdout:
            heard[0] = time.monotonic()
            if begins := BEGINS.match(line):
                name, text, start = begins[1], [], time.monotonic()
            elif name and (ends := ENDS.match(line)) and line[ends.end() :].split(" ")[0].rstrip(",\n") == name:
                outcome = "passed" if ends["passed"] else "failed" if ends["failed"] else "skipped"
                results.append(Result(program, name, time.monotonic() - start, outcome, "".join(text)))
                name, text = None, []
            else:
                text.append(line)
        status = process.wait()
    if not results and status == 0 and any(line.startswith(SKIPS_ALL) for line in text):
        return [Result(program, name, 0.0, "skipped", "".join(text)) for name in names]
    if len(results) < len(names):
        text.append(f"the process ended with status {status}")
        results.append(Result(program, names[len(results)], time.monotonic() - start, "failed", "".join(text)))
    elif status not in (0, 1) or (status == 1 and all(result.outcome != "failed" for result in results)):
        last = results[-1]  # a crash on the way out
        last.outcome, last.text = "failed", f"{last.text}the process ended with status {status} after its last test"
    return results


def kill_if_silent(process, heard):
    while process.poll() is None:
        if time.monotonic() - heard[0] > SILENCE:
            process.kill()
        time.sleep(1)


def report(results):
    """JUnit's report."""
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", name="GoogleTest", tests=str(len(results)))
    for result in results:
        suite_name, test = result.name.split(".", 1)
        program = pathlib.Path(result.program).name
        attributes = {"classname": f"{program}.{suite_name}", "name": test, "time": f"{result.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        if result.outcome != "passed":
            what = "failure" if result.outcome == "failed" else "skipped"
            ElementTree.SubElement(case, what).text = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", result.text)
    return ElementTree.ElementTree(root)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("programs", nargs="+", metavar="PROGRAM")
    options = parser.parse_args()

    jobs = []
    for program in options.programs:
        names = names_of(program)
        if not names:
            parser.error(f"{program} has no test")
        jobs += [(program, part) for part in parts_of(names)]
    start, results = time.monotonic(), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(lambda job: run(*job), jobs):
            results += done
            if len(results) // 500 > (len(results) - len(done)) // 500:
                print(f"  {len(results)} of {sum(len(part) for _, part in jobs)}", flush=True)
            for result in done:
                if result.outcome == "failed":
                    print(f"{result.program} --gtest_filter={result.name} failed:\n{result.text}", flush=True)
    report(results).write(options.report, encoding="unicode")
    for program in dict.fromkeys(result.program for result in results):
        count = Counter(result.outcome for result in results if result.program == program)
        print(pathlib.Path(program).name, ", ".join(f"{n} {outcome}" for outcome, n in sorted(count.items())))
    slowest = sorted(results, key=lambda result: -result.seconds)[:5]
    print("slowest:", ", ".join(f"{result.name} {result.seconds:.1f} s" for result in slowest))
    print(f"{len(results)} C++ tests in {time.monotonic() - start:.0f} s")
    return any(result.outcome == "failed" for result in results)


if __name__ == "__main__":
    sys.exit(main())
