#!/usr/bin/env bash
# Attention against PyTorch's scaled_dot_product_attention and the plain formula; see docs/benchmarks.md.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
scripts/build.sh release ON bench_attention
mkdir -p build/bench
build/release/bin/bench_attention --json build/bench/attention.json --commit "$(git rev-parse --short HEAD 2>/dev/null || true)" "$@"
say "JSON: build/bench/attention.json"
