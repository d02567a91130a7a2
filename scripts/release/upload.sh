#!/usr/bin/env bash
# upload.sh <folder>   the wheels of a folder that check_dist.sh has checked, to the index, as the workflow's identity (trusted
# publishing: no password exists).
source "$(dirname "$0")/../common.sh"
(($#)) || fail "no folder: got nothing, expected that of the checked wheels." "Fix: scripts/release/upload.sh build/checked"
(cd "$1" && sha256sum --check --strict SHA256SUMS) || fail "$1 is not what was checked"
scripts/bootstrap.sh
scripts/release/tools.sh
PYTHONPATH=$PWD/build/release-tools .venv/bin/python -m twine upload --non-interactive "$1"/*.whl
