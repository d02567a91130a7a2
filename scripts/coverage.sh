#!/usr/bin/env bash
# coverage.sh [pytest arguments]   which lines of the attention operators (xformers/ops/attention) the C++ and Python tests
# run. Prints a table of the files with their missing lines, and fails below 95 %. Its own tree: build/coverage.
source "$(dirname "$0")/common.sh"
readonly minimum=95 tree=build/coverage
scripts/bootstrap.sh
stamp=.venv/.installed-coverage-$(cksum <requirements-coverage.txt | cut -d' ' -f1)
if [[ ! -f $stamp ]]; then
  step "gcovr" .venv/bin/python -m pip install --disable-pip-version-check -r requirements-coverage.txt
  touch "$stamp"
fi
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD/$tree/python" XFORMERS_BUILD_DIR="$PWD/$tree"
step "configure (coverage)" cmake --preset release -B "$tree" -DXFORMERS_COVERAGE=ON -DXFORMERS_TORCH_UNITS=alone -DXFORMERS_EXAMPLES=OFF
step "build (coverage)" cmake --build "$tree" --target ops_test python_package
find "$tree" -name '*.gcda' -delete

status=0
step "C++ tests" "$tree/bin/ops_test" --gtest_brief=1 || status=1
python -m pytest -q tests/python -m "not wall_clock" "$@" || status=1  # -O0 is no measure of speed
gcov=${CXX//g++/gcov}
gcovr --gcov-executable "$(command -v "$gcov" || echo gcov)" --root . --object-directory "$tree" \
  --filter xformers/ops/attention/ --merge-mode-functions separate --fail-under-line "$minimum" \
  --txt "$tree/coverage.txt" "$tree" || status=1
cat "$tree/coverage.txt"
exit $status
