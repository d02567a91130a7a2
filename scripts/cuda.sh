#!/usr/bin/env bash
# cuda.sh [cmake options]   builds with the CUDA kernels into build/cuda; where there is a GPU, runs the tests that need
# one and the benchmark against PyTorch. Shorter: -DXFORMERS_HEAD_DIMS=128 -DXFORMERS_CUDA_ARCHS=90a-real
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" NINJA_STATUS="[%f/%t %es] "
step "CUTLASS headers" .venv/bin/python -m pip install --no-deps nvidia-cutlass==4.2.0.0
step "configure (cuda)" cmake --preset release -B build/cuda -DXFORMERS_CUDA=ON -DXFORMERS_DEVELOPER=ON \
  "-DPython_EXECUTABLE=$PWD/.venv/bin/python" "$@"
cmake --build build/cuda
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "no GPU here: built, not run"
  exit 0
fi
ctest --test-dir build/cuda -L cuda --output-on-failure
PYTHONPATH=build/cuda/python .venv/bin/python -m pytest -q tests/python/matrix tests/python/test_cuda_attention.py -k cuda
mkdir -p build/bench
.venv/bin/python benchmarks/bench_attention_cuda.py --library build/cuda/lib/libxformers.so \
  --out build/bench/attention-cuda.json --commit "$(git rev-parse --short HEAD 2>/dev/null || true)"
say "JSON: build/bench/attention-cuda.json"
