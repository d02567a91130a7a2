#!/usr/bin/env bash
# test.sh [preset]   builds everything, runs the C++ tests (ctest) and the Python tests (pytest); ends with the counts.
source "$(dirname "$0")/common.sh"
readonly preset=${1:-release}
scripts/bootstrap.sh
scripts/build.sh "$preset" ON all
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD/build/$preset/python" XFORMERS_BUILD_DIR="$PWD/build/$preset"

reports=build/$preset/reports
rm -rf "$reports" && mkdir -p "$reports"
status=0
say "C++ tests"
ctest --test-dir "build/$preset" --progress --parallel "$(nproc)" --output-on-failure --no-tests=error --output-junit "$PWD/$reports/ctest.xml" || status=1
say "Python tests"
python -m pytest -q --durations=5 --junitxml="$reports/pytest.xml" tests || status=1
python scripts/count_tests.py "$reports"/*.xml || status=1
exit $status
