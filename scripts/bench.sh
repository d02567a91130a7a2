#!/usr/bin/env bash
# bench.sh [option...]   attention, then the operators around it, against PyTorch; see docs/benchmarks.md. Options go to
# both programs.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh release ON bench_attention bench_blocks
mkdir -p build/bench
commit=$(git rev-parse --short HEAD 2>/dev/null || true)
for what in attention blocks; do
  "build/release/bin/bench_$what" --json "build/bench/$what.json" --commit "$commit" "$@"
  say "JSON: build/bench/$what.json"
done
