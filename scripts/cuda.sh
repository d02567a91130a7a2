#!/usr/bin/env bash
# cuda.sh [cmake options]   builds with all CUDA kernels into build/cuda, with nvcc from PyPI where there is no toolkit; where
# there is a GPU, runs what needs one. Shorter: -DXFORMERS_HEAD_DIMS=128 -DXFORMERS_CUDA_ARCHS=90a-real
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" NINJA_STATUS="[%f/%t %es] "
if [[ -z $(find_nvcc) ]]; then
  step "nvcc" .venv/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements-nvcc.txt
fi
cutlass_headers || fail "CUTLASS's headers could not be installed; the whole output is in $LOGS/CUTLASS-headers.log"
step "configure (cuda)" cmake --preset release -B build/cuda -DXFORMERS_CUDA=ON -DXFORMERS_DEVELOPER=ON \
  "-DCMAKE_CUDA_COMPILER=$(find_nvcc)" "-DPython_EXECUTABLE=$PWD/.venv/bin/python" "$@"
cmake --build build/cuda
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "no GPU here: built, not run"
  exit 0
fi
COMMIT=$(git describe --always --dirty 2>/dev/null || true)
export COMMIT RESULTS=$PWD/build/bench PYTHON=$PWD/.venv/bin/python
scripts/gpu/check.sh "$PWD/build/cuda/python" build/cuda/bin/kernels_cuda_test build/bench/gpu
say "JSON: build/bench"
