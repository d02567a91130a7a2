#!/usr/bin/env bash
# The C++ tests under AddressSanitizer and UBSan.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh asan ON kernels_test ops_test
export PATH="$PWD/.venv/bin:$PATH"
ctest --preset asan --progress --parallel "$(nproc)" --no-tests=error
