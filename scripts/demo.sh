#!/usr/bin/env bash
# Trains the small GPT of examples/microgpt for about two minutes and compares several attentions: on the GPU where there is
# one, and nvcc 13 to compile the kernels that the demo runs there; else on the CPU.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
options=()
# A fresh tree gets the kernels that this machine runs; one that has more keeps them.
[[ -f build/release/CMakeCache.txt ]] || options+=(-DXFORMERS_CPU_ISAS=host)
if capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) && [[ -n $capability ]]; then
  nvcc=$(find_nvcc)
  if [[ -n $nvcc ]] && cutlass_headers; then
    [[ $capability != 90 ]] || capability=90a
    options+=(-DXFORMERS_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DXFORMERS_CUDA_ARCHS=$capability-real"
      -DXFORMERS_HEAD_DIMS=64 "-DXFORMERS_CUDA_DTYPES=bf16;fp32")
  else
    say "a GPU, but no nvcc 13 or no CUTLASS headers to compile kernels for it: on the CPU"
  fi
fi
scripts/build.sh release OFF microgpt "${options[@]}"
.venv/bin/python examples/microgpt/demo.py --build-dir build/release --out build/demo "$@"
