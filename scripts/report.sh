#!/usr/bin/env bash
# report.sh [option...]   all benchmarks, Python's and C++'s, into build/report/index.html; see docs/benchmarks.md.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh release ON xformers python_package bench_attention bench_blocks
PYTHONPATH=build/release/python exec .venv/bin/python -m xformers.benchmarks.report "$@"
