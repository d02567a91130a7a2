# shellcheck shell=bash
# Sourced by every script here: the repository's root as working directory, messages, timed steps.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly LOGS=build/logs
mkdir -p "$LOGS"

# As many compilers as there are cores, fewer where memory is short: one takes up to 2 GB.
parallel_jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
  printf '%d' $((memory < 1 ? 1 : memory < cores ? memory : cores))
}
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(parallel_jobs)}

# Prints a compiler that is g++ 12 or later (or whatever CXX says), else nothing.
find_compiler() {
  local candidate
  for candidate in ${CXX:-g++ c++ g++-14 g++-13 g++-12}; do
    if [[ -n $(command -v "$candidate") && $("$candidate" -dumpversion | cut -d. -f1) -ge 12 ]]; then
      command -v "$candidate"
      return
    fi
  done
}

# Prints nvcc 13 or later: CUDACXX, PATH's, the toolkit's, or the one of requirements-nvcc.txt in .venv; else nothing.
find_nvcc() {
  local candidate
  for candidate in ${CUDACXX:-nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" .venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc}; do
    if [[ $("$candidate" --version 2>/dev/null) =~ release\ ([0-9]+) ]] && ((BASH_REMATCH[1] >= 13)); then
      realpath "$(command -v "$candidate")"
      return
    fi
  done
}

# CUTLASS's headers into .venv; false where they can't be had.
cutlass_headers() {
  local stamp
  stamp=.venv/.installed-cuda-$(cksum <requirements-cuda.txt | cut -d' ' -f1)
  [[ -f $stamp ]] && return
  .venv/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements-cuda.txt \
    >"$LOGS/CUTLASS-headers.log" 2>&1 && touch "$stamp"
}

say() { printf '%s\n' "$*"; }
fail() {
  printf '\nerror: %s\n' "$1" >&2
  shift
  if (($#)); then printf '  %s\n' "$@" >&2; fi
  exit 1
}

# step <what> <command...>: one line with the elapsed time; the output goes to a log that is shown if the command fails.
step() {
  local what=$1 log start=$SECONDS pid tick=0
  shift
  log=${what%% (*}  # "Python packages (torch ...)" logs to Python-packages.log
  log="$LOGS/${log// /-}.log"
  "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null || true' EXIT
  [[ -t 1 ]] || printf '%s ...\n' "$what"
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if [[ -t 1 ]]; then
      printf '\r\033[K%s ... %d s  %s' "$what" $((SECONDS - start)) "$(last_line "$log")"
    elif ((++tick % 150 == 0)); then
      printf '  %d s  %s\n' $((SECONDS - start)) "$(last_line "$log")"
    fi
  done
  trap - EXIT
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  if wait "$pid"; then
    printf '%s: %d s\n' "$what" $((SECONDS - start))
  else
    tail -n 25 "$log" >&2
    fail "$what failed; the whole output is in $log"
  fi
}

last_line() { tail -c 4000 "$1" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c 1-70 || true; }
