#!/usr/bin/env bash
# Trains the small GPT of examples/microgpt for about two minutes and compares three attentions.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
# A fresh tree gets the kernels that this machine runs; one that has more keeps them.
isas=()
[[ -f build/release/CMakeCache.txt ]] || isas=(-DXFORMERS_CPU_ISAS=host)
scripts/build.sh release OFF microgpt "${isas[@]}"
.venv/bin/python examples/microgpt/demo.py --build-dir build/release --out build/demo "$@"
