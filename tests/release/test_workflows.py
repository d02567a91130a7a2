"""The workflows call our scripts and do nothing more."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("check_workflows", ROOT / "scripts/release/check_workflows.py")
check_workflows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_workflows)

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_step_is_one_of_our_scripts(file):
    assert list(check_workflows.problems(file.read_text())) == []


def test_the_workflows_are_there():
    assert {"lint", "test", "docs", "wheels", "release"} <= {file.stem for file in WORKFLOWS}


@pytest.mark.parametrize(
    "step, problem",
    [
        ("run: make lint && curl example.org", "expected one call of make or of a script"),
        ('run: "make lint; true"', "expected one call of make or of a script"),
        ("run: pip install twine", "expected one call of make or of a script"),
        ("run: scripts/release/none.sh", "which is not there"),
        ("run: make coffee", "the Makefile does not have"),
        ("uses: actions/checkout@v4", "expected a commit of 40 digits"),
        (f"uses: somebody/action@{'0' * 40}", "expected one of actions/"),
    ],
)
def test_a_step_that_does_more_is_named(step, problem):
    workflow = f"permissions: {{}}\njobs:\n  job:\n    permissions: {{}}\n    steps:\n      - {step}\n"
    (found,) = check_workflows.problems(workflow)
    assert found.startswith("job, step 1: ") and problem in found


def test_permissions_are_asked_for():
    found = list(check_workflows.problems("jobs:\n  job:\n    steps: []\n"))
    assert found == ["permissions of the workflow are not {}: each job asks for its own", "job: no permissions"]
