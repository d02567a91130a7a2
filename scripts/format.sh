#!/usr/bin/env bash
# format.sh [--check]   clang-format and ruff over the sources of this repository; with --check, mypy over their types.
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
if [[ ${1:-} == --check ]]; then
  .venv/bin/clang-format --dry-run --Werror "${cpp[@]}"
  .venv/bin/ruff format --check "${python[@]}"
  .venv/bin/ruff check "${python[@]}"
  .venv/bin/mypy
else
  .venv/bin/clang-format -i "${cpp[@]}"
  .venv/bin/ruff format "${python[@]}"
  .venv/bin/ruff check --fix "${python[@]}"
fi
