"""How the tests run the Python programs of examples/: in this process, as loading torch takes longer than most runs."""

import io
import json
import re
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

from programs import ROOT

EXAMPLES = ROOT / "examples"


def run(path: str, *arguments) -> CompletedProcess:
    """As `python examples/<path> <arguments>` would."""
    script = EXAMPLES / path
    argv, known = sys.argv, set(sys.modules)
    sys.argv = [str(script), *map(str, arguments)]
    sys.path.insert(0, str(script.parent))
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):  # as the interpreter does
            err.write(code + "\n")
            code = 1
    finally:
        sys.argv = argv
        sys.path.remove(str(script.parent))
        for name in set(sys.modules) - known:  # modules of two programs may have one name
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
                del sys.modules[name]
    return CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def smoke(path: str, report: Path, *arguments) -> tuple[dict, str]:
    """The report and the last line of a --smoke run on the CPU, which has to end well."""
    done = run(path, "--smoke", "--device", "cpu", "--report", report, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text()), done.stdout.strip().splitlines()[-1]


def refused(path: str, *arguments) -> str:
    """The one sentence of a run that has to end badly, with what to do."""
    done = run(path, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.fullmatch(rf"{Path(path).name}: .+Fix: .+\n", done.stderr), done.stderr
    return done.stderr
