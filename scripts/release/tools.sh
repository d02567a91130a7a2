#!/usr/bin/env bash
# tools.sh   the packages of requirements-release.txt, checked against their hashes, in build/release-tools: no other program
# sees them.
source "$(dirname "$0")/../common.sh"
folder=build/release-tools stamp=build/release-tools/.installed-$(cksum <requirements-release.txt | cut -d' ' -f1)
if [[ ! -f $stamp ]]; then
  rm -rf "$folder"
  step "release tools" .venv/bin/python -m pip install --disable-pip-version-check --require-hashes --target "$folder" \
    -r requirements-release.txt
  touch "$stamp"
fi
