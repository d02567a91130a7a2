#!/usr/bin/env bash
# Builds the Python wheel into build/dist, against the torch of .venv. CUDA=1: with the CUDA kernels, whatever GPU is here;
# CUDA=0: without; unset: with them where nvcc 13 and a GPU are visible.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH"
if [[ -n ${CUDA:-} ]]; then
  XFORMERS_CUDA=$([[ $CUDA == 0 ]] && echo OFF || echo ON)
  export XFORMERS_CUDA
fi
if [[ ${XFORMERS_CUDA:-OFF} == ON ]]; then
  if [[ -z $(find_nvcc) ]]; then
    step "nvcc" python -m pip install --disable-pip-version-check --no-deps -r requirements-nvcc.txt
  fi
  CUDACXX=$(find_nvcc)
  export CUDACXX
fi
cutlass_headers || [[ ${XFORMERS_CUDA:-OFF} != ON ]] || fail "CUTLASS's headers could not be installed" "See $LOGS/CUTLASS-headers.log"
step "wheel" python -m pip wheel . --no-deps --no-build-isolation --wheel-dir build/dist
ls -1 build/dist/*.whl
