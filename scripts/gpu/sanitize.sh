#!/usr/bin/env bash
# sanitize.sh PROGRAM OUT [gtest filter] [tool...]   runs tests of PROGRAM (kernels_cuda_test) under compute-sanitizer: by
# default every kernel on a few small cases, with memcheck, racecheck, initcheck and synccheck at once, each in SHARDS
# processes (default 4). Leaves logs and OUT/<tool>.json: exit status, errors,
# warnings, tests.
set -uo pipefail
readonly program=$1 out=$2 filter=${3:-Kernels/Forced*:Dropout/*d64*:Quantized/*} shards=${SHARDS:-4}
shift 2
[[ $# == 0 ]] || shift
tools=("$@")
((${#tools[@]})) || tools=(memcheck racecheck initcheck synccheck)
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
mkdir -p "$out"

# The number in the last line of each log that matches; logs without one make the sum null.
sum() {  # expression log...
  local expression=$1 log number total=0
  shift
  for log in "$@"; do
    number=$(sed -nE "s/$expression/\\1/p" "$log" | tail -n 1)
    [[ -n $number ]] || { echo null && return; }
    total=$((total + number))
  done
  echo "$total"
}
check() {  # tool
  local shard status=0 running=() logs=() start=$SECONDS of_tool=$filter
  # Two things racecheck leaves out. A warp of the Hopper backward reads (or writes) row statistics, syncs, and lets one
  # lane arrive at the barrier for all: racecheck takes that as said of this lane's accesses alone. The general kernels
  # run under it in the cases of fp64, which no other kernel takes; forced on every case they need minutes.
  [[ $1 != racecheck || $filter == *-* ]] || of_tool="$filter-*bwd_sm90*:*HopperBackward*:Kernels/Forced*_simt"
  for ((shard = 0; shard < shards; ++shard)); do
    logs+=("$out/$1-$shard.log")
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard "$sanitizer" --tool "$1" --error-exitcode 99 --print-limit 20 \
      "$program" "--gtest_filter=$of_tool" >"$out/$1-$shard.log" 2>&1 &
    running+=($!)
  done
  for shard in "${running[@]}"; do wait "$shard" || status=$?; done
  printf '{"tool": "%s", "exit": %d, "errors": %s, "warnings": %d, "tests_passed": %s, "seconds": %d}\n' "$1" "$status" \
    "$(sum '^=+ .*SUMMARY: ([0-9]+) (error|hazard).*' "${logs[@]}")" "$(cat "${logs[@]}" | grep -oE '[0-9]+ warnings?\)$' | awk '{n += $1} END {print n + 0}')" \
    "$(sum '^\[  PASSED  \] ([0-9]+) tests?.*' "${logs[@]}")" $((SECONDS - start)) | tee "$out/$1.json"
  return "$status"
}
running=()
for tool in "${tools[@]}"; do
  check "$tool" &
  running+=($!)
done
status=0
for one in "${running[@]}"; do wait "$one" || status=1; done
exit $status
