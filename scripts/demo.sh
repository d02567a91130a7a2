#!/usr/bin/env bash
# Trains the small GPT of examples/microgpt for about two minutes and compares three attentions.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh release OFF microgpt
.venv/bin/python examples/microgpt/demo.py --build-dir build/release --out build/demo "$@"
