#!/usr/bin/env bash
# lock.sh   requirements-release.txt anew from requirements-release.in: every package, at a version, with the hashes of its
# files, for each Python that is taken.
source "$(dirname "$0")/../common.sh"
tools=$PWD/build/lock-tools
[[ -d $tools ]] || .venv/bin/python -m pip install --disable-pip-version-check --target "$tools" uv
"$tools/bin/uv" pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header \
  --no-annotate --output-file requirements-release.txt requirements-release.in
