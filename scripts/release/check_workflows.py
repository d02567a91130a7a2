"""check_workflows.py [folder]   what the workflows in .github/workflows may hold.

A step calls one of our scripts, or `make` with a goal, and nothing more: what a workflow does can then be done on
any machine, and is tested. Actions are those that only a runner can do, pinned to a commit.
Permissions are given per job.
"""

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
ACTIONS = {
    "actions/checkout",
    "actions/upload-artifact",
    "actions/download-artifact",
    "actions/attest-build-provenance",
}
COMMAND = re.compile(r"(?:make(?: [a-z-]+)+|(?:\.venv/bin/python )?scripts/[\w/-]+\.(?:sh|py)(?: [\w./=-]+)*)")


def problems_of_step(step):
    if "uses" in step:
        action, _, commit = step["uses"].partition("@")
        if action not in ACTIONS:
            yield f"uses {action}, expected one of {', '.join(sorted(ACTIONS))}"
        if not re.fullmatch("[0-9a-f]{40}", commit):
            yield f"{action} is pinned to '{commit}', expected a commit of 40 digits"
    elif not COMMAND.fullmatch(step.get("run", "").strip()):
        yield f"runs {step.get('run', '')!r}, expected one call of make or of a script in scripts/"
    else:
        script = re.search(r"scripts/\S+", step["run"])
        if script and not (ROOT / script.group()).exists():
            yield f"runs {script.group()}, which is not there"
        goals = step["run"].split()[1:] if step["run"].startswith("make ") else []
        makefile = (ROOT / "Makefile").read_text()
        for goal in goals:
            if not re.search(rf"^{goal}:", makefile, re.MULTILINE):
                yield f"runs make {goal}, which the Makefile does not have"


def problems(text):
    workflow = yaml.safe_load(text)
    if workflow.get("permissions") != {}:
        yield "permissions of the workflow are not {}: each job asks for its own"
    for name, job in workflow["jobs"].items():
        if "permissions" not in job:
            yield f"{name}: no permissions"
        for number, step in enumerate(job["steps"], 1):
            for problem in problems_of_step(step):
                yield f"{name}, step {number}: {problem}"


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".github/workflows"
    files = sorted(folder.glob("*.yml"))
    found = [f"{file.name}: {problem}" for file in files for problem in problems(file.read_text())]
    print("\n".join(found) if found else f"{len(files)} workflows: every step is one of our scripts")
    return bool(found) or not files


if __name__ == "__main__":
    sys.exit(main())
