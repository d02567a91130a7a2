#!/usr/bin/env bash
# The C++ tests, and Python's tests of bad input, under AddressSanitizer and UBSan.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh asan ON kernels_test ops_test profiler_test python_package
export PATH="$PWD/.venv/bin:$PATH"
ctest --preset asan --progress --parallel "$(nproc)" --no-tests=error
# Python itself is not instrumented, so the sanitizer's library comes first; what the interpreter keeps is no leak.
say "Python: bad input"
CXX=$(find_compiler)
LD_PRELOAD="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
  PYTHONPATH="$PWD/build/asan/python" python -m pytest -q tests/python/bad_input
