#!/usr/bin/env bash
# check.sh PACKAGE PROGRAM OUT [part...]   every test that needs a GPU, both benchmarks, and their record (record.py).
#   PACKAGE   the folder that holds the Python package, as in PYTHONPATH      PROGRAM   kernels_cuda_test
#   parts     attention blocks (benchmarks, alone on the machine) kernels python sanitize; all of them by default
# SHARDS processes (default 8) share the tests. COMMIT is recorded; ROOT holds the sources that were built (default: this
# repository); RESULTS is where a whole and green record goes; PYTHON is the interpreter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
readonly package=$1 program=$2 out=$3 shards=${SHARDS:-8} python=${PYTHON:-python3}
shift 3
parts=("$@")
((${#parts[@]})) || parts=(attention blocks kernels python sanitize)
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

wait_all() {
  local one status=0
  for one in "$@"; do wait "$one" || status=1; done
  return $status
}
kernels() {
  local shard running=()
  for ((shard = 0; shard < shards; ++shard)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard "$program" --gtest_brief=1 \
      "--gtest_output=xml:$out/kernels-$shard.xml" >"$out/kernels-$shard.log" 2>&1 &
    running+=($!)
  done
  wait_all "${running[@]}"
}
python() {
  local shard running=()
  for ((shard = 0; shard < shards; ++shard)); do
    XFORMERS_TEST_SHARD=$shard/$shards PYTHONPATH=$package "$python" -m pytest -q -p no:cacheprovider tests/python -k cuda \
      "--junitxml=$out/python-$shard.xml" >"$out/python-$shard.log" 2>&1 &
    running+=($!)
  done
  wait_all "${running[@]}"
}
attention() {
  PYTHONPATH=$package "$python" benchmarks/bench_attention_cuda.py --out "$out/attention-cuda.json" --commit "${COMMIT:-}"
}
blocks() {
  PYTHONPATH=$package "$python" benchmarks/bench_blocks_cuda.py --out "$out/blocks-cuda.json" --commit "${COMMIT:-}"
}
sanitize() { SHARDS=4 scripts/gpu/sanitize.sh "$program" "$out/sanitizer"; }  # times four tools

status=0
for part in "${parts[@]}"; do "$part" || status=1; done
"$python" scripts/gpu/record.py "$out" --commit "${COMMIT:-}" --root "${ROOT:-.}" ${RESULTS:+--results "$RESULTS"} || status=1
exit $status
