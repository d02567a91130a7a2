#!/usr/bin/env bash
# first_step.sh   how long a newcomer waits for the first training step of `make demo`: what .venv takes where it isn't there,
# the build without a cache, one step. Fails where the build takes more processor time than the bound, which says the same
# on a busy machine and a quiet one. What it builds in build/release `make test` goes on with.
source "$(dirname "$0")/common.sh"
readonly bound=450  # seconds: half of it on two cores and 100 s for torch are within the 6 minutes that the first step may take

# Processor time of the processes that have ended, in seconds.
processor_seconds() {
  local user system
  times >"$LOGS/times"
  read -r user system < <(tail -n 1 "$LOGS/times")
  awk -v in_user="$user" -v in_kernel="$system" 'function seconds(t) { split(t, part, /[ms]/); return 60 * part[1] + part[2] }
    BEGIN { print int(seconds(in_user) + seconds(in_kernel)) }'
}

start=$SECONDS
scripts/bootstrap.sh
ready=$((SECONDS - start))
rm -rf build/release
processor_seconds >"$LOGS/before"
CCACHE_DISABLE=1 scripts/build.sh release OFF microgpt -DXFORMERS_CPU_ISAS=host
processor_seconds >"$LOGS/after"
used=$(($(<"$LOGS/after") - $(<"$LOGS/before")))
built=$((SECONDS - start - ready))
step "first training step" build/release/bin/microgpt train --steps 1 --evals 1 --eval-windows 1 --sample-bytes 0 \
  --device cpu --python "$PWD/.venv/bin/python"
say "from nothing to the first training step: $((SECONDS - start)) s (packages $ready s, build $built s with $CMAKE_BUILD_PARALLEL_LEVEL" \
  "jobs: $used s of processor time, at most $bound)"
((used <= bound)) || fail "the build took $used s of processor time, expected at most $bound." \
  "Fix: find what has grown, with -ftime-report or the times in build/release/.ninja_log; see cmake/TorchHeaders.cmake"
