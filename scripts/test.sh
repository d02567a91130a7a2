#!/usr/bin/env bash
# test.sh [preset]   builds everything, runs the C++ tests (gtest.py) and the Python tests (pytest); ends with the counts.
# Where nvcc 13 is found the CUDA kernels of one head dim in bf16 and fp32 are compiled too; XFORMERS_CUDA=OFF: never.
source "$(dirname "$0")/common.sh"
readonly preset=${1:-release}
scripts/bootstrap.sh
cuda=(-DXFORMERS_CUDA=OFF)
nvcc=$(find_nvcc)
if [[ ${XFORMERS_CUDA:-ON} == OFF ]]; then
  say "CUDA kernels: left out, because XFORMERS_CUDA=OFF"
elif [[ -z $nvcc ]]; then
  say "CUDA kernels: left out, because no nvcc 13 was found"
elif ! cutlass_headers; then
  say "CUDA kernels: left out, because CUTLASS's headers could not be installed ($LOGS/CUTLASS-headers.log)"
else
  cuda=(-DXFORMERS_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DXFORMERS_CUDA_DTYPES=bf16;fp32" -DXFORMERS_HEAD_DIMS=128)
fi
scripts/build.sh "$preset" ON all -DXFORMERS_CPU_ISAS=all "${cuda[@]}"
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD/build/$preset/python" XFORMERS_BUILD_DIR="$PWD/build/$preset"

reports=build/$preset/reports
rm -rf "$reports" && mkdir -p "$reports"
export XFORMERS_TEST_RATIOS=$PWD/$reports/ratios.txt
status=0
say "C++ tests"
programs=("build/$preset/bin/"{kernels,ops,profiler}_test)
[[ ${cuda[0]} == *=OFF ]] || programs+=("build/$preset/bin/kernels_cuda_test")
python scripts/gtest.py "$reports/gtest.xml" "${programs[@]}" || status=1
say "Python tests"
python -m pytest -q -n "$(nproc)" --dist worksteal -m "not wall_clock" --durations=5 --junitxml="$reports/pytest.xml" \
  --ignore tests/install tests || status=1
# with_packages <name> <words> <tests...>   tests that need the packages of requirements-<name>.txt, which lie in a folder of
# their own: no other test finds them.
with_packages() {
  local name=$1 words=$2 folder
  folder=$PWD/.venv/$name-$(cksum <"requirements-$name.txt" | cut -d' ' -f1)
  shift 2
  if [[ -d $folder ]] || { python -m pip install --disable-pip-version-check --target "$folder.new" -r "requirements-$name.txt" \
    >"$LOGS/packages-of-$name.log" 2>&1 && mv "$folder.new" "$folder"; }; then
    say "Python tests $words"
    PYTHONPATH="$folder:$PYTHONPATH" python -m pytest -q --junitxml="$reports/$name.xml" "$@" || status=1
  else
    say "Python tests $words: left out, because requirements-$name.txt could not be installed ($LOGS/packages-of-$name.log)"
  fi
}
with_packages models "with the modules of real models" tests/python/test_transformers.py tests/python/test_llama_of_transformers.py
with_packages examples "with Hydra and YAML" tests/examples/test_build_model.py tests/python/test_hydra.py \
  tests/release/test_workflows.py
say "Installation tests, one after the other: each builds with all processors, most in the same build/wheel"
python -m pytest -q --durations=5 --junitxml="$reports/install.xml" tests/install || status=1
say "Python tests that measure time, alone on the machine, with threads that wait as they do for users"
OMP_WAIT_POLICY=active python -m pytest -q -m wall_clock --junitxml="$reports/wall_clock.xml" tests || status=1
if [[ $preset != release ]]; then
  say "Documentation: left out, of build/release alone"
elif ! command -v doxygen >/dev/null && [[ ${XFORMERS_APT:-1} == 0 || $(id -u) != 0 ]]; then
  say "Documentation: left out, because there is no Doxygen"
else
  scripts/docs.sh || status=1
fi
python scripts/junit.py "$reports"/*.xml --ratios "$XFORMERS_TEST_RATIOS" || status=1
exit $status
