#!/usr/bin/env bash
# format.sh [--check]   clang-format and ruff over the sources of this repository; with --check, also mypy over
# their types and shellcheck over the scripts.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
stamp=.venv/.installed-lint-$(cksum <requirements-lint.txt | cut -d' ' -f1)
if [[ ! -f $stamp ]]; then
  step "format tools" .venv/bin/python -m pip install --disable-pip-version-check -r requirements-lint.txt
  touch "$stamp"
fi
files() { git ls-files --cached --others --exclude-standard "$@"; }
mapfile -t cpp < <(files '*.h' '*.cpp' '*.cuh' '*.cu')
mapfile -t python < <(files '*.py')
mapfile -t shell < <(files '*.sh' .ci/run)
if [[ ${1:-} == --check ]]; then
  .venv/bin/clang-format --dry-run --Werror "${cpp[@]}"
  .venv/bin/ruff format --check "${python[@]}"
  .venv/bin/ruff check "${python[@]}"
  .venv/bin/mypy
  .venv/bin/shellcheck --severity=warning "${shell[@]}"
else
  .venv/bin/clang-format -i "${cpp[@]}"
  .venv/bin/ruff format "${python[@]}"
  .venv/bin/ruff check --fix "${python[@]}"
fi
