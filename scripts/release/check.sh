#!/usr/bin/env bash
# check.sh [part...]   what a release must pass that needs no GPU; all parts run, the last lines are a table. make release-check.
source "$(dirname "$0")/../common.sh"
readonly PARTS=(lint workflows wheel dist archives conan gcc clang aarch64 install docs)
part() {
  case $1 in
    lint) make lint ;;
    workflows) scripts/release/workflows.sh ;;
    wheel) if [[ -x scripts/release/wheel.sh ]]; then scripts/release/wheel.sh; else make wheel CUDA=0; fi ;;
    dist) scripts/release/check_dist.sh build/dist ;;
    archives) scripts/release/archives.sh ;;
    conan) scripts/release/conan.sh ;;
    gcc | clang | aarch64) scripts/release/portability.sh "$1" ;;
    install)
      scripts/build.sh release ON all -DXFORMERS_CPU_ISAS=all -DXFORMERS_CUDA=OFF
      PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD/build/release/python" .venv/bin/python -m pytest -q tests/install ;;
    docs) make docs ;;
    *) fail "unknown part '$1', expected some of: ${PARTS[*]}" ;;
  esac
}
(($#)) || set -- "${PARTS[@]}"
for name in "$@"; do [[ " ${PARTS[*]} " == *" $name "* ]] || part "$name"; done
table=() status=0
mkdir -p "$LOGS/release"
for name in "$@"; do
  start=$SECONDS
  result=passed
  say "release-check: $name"
  # A subshell of its own: `set -e` holds inside of it, and a part that fails does not end the others.
  set +e
  (set -e; part "$name") >"$LOGS/release/$name.log" 2>&1
  code=$?
  set -e
  if ((code)); then
    result="FAILED, see $LOGS/release/$name.log"
    status=1
    tail -n 5 "$LOGS/release/$name.log"
  elif grep -q "left out" "$LOGS/release/$name.log"; then
    result="passed; $(grep -m 1 -o '[^ ]*[^.]*left out.*' "$LOGS/release/$name.log")"
  fi
  table+=("$(printf '%-10s %5d s  %s' "$name" $((SECONDS - start)) "$result")")
done
printf '  %s\n' "${table[@]}"
exit $status
