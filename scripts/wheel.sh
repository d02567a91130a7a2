#!/usr/bin/env bash
# Builds the Python wheel into build/dist, against the torch of .venv.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH"
step "wheel" python -m pip wheel . --no-deps --no-build-isolation --wheel-dir build/dist
ls -1 build/dist/*.whl
