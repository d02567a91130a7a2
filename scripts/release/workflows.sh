#!/usr/bin/env bash
# workflows.sh   .github/workflows: every step is one of our scripts (check_workflows.py), no weakness that zizmor knows, no
# mistake that actionlint knows, where that is installed.
source "$(dirname "$0")/../common.sh"
scripts/bootstrap.sh
scripts/release/tools.sh
PYTHONPATH=$PWD/build/release-tools .venv/bin/python scripts/release/check_workflows.py
build/release-tools/bin/zizmor --offline --no-progress .github/workflows
if command -v actionlint >/dev/null; then
  actionlint
else
  say "actionlint: left out, because it is not installed"
fi
