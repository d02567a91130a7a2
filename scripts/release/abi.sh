#!/usr/bin/env bash
# abi.sh <last release: an archive or its unpacked folder> [this one: the same, default the archive of the kernels in build/dist]
# abidiff of every library that both hold: fails where a program linked against the last release could break.
source "$(dirname "$0")/../common.sh"
(($#)) || fail "no last release: got nothing, expected its archive or folder." "Fix: scripts/release/abi.sh xformers-0.1.0-kernels-linux-x86_64.tar.gz"
if ! command -v abidiff >/dev/null; then
  if [[ $(id -u) == 0 && ${XFORMERS_APT:-1} != 0 ]]; then
    step "abidiff" apt-get install -y --no-install-recommends abigail-tools
  else
    fail "abidiff was not found." "Fix: sudo apt-get install abigail-tools"
  fi
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# unpacked <archive or folder> <name>: prints the folder
unpacked() {
  if [[ -d $1 ]]; then
    realpath "$1"
  elif [[ -f $1 ]]; then
    mkdir "$scratch/$2" && tar -xzf "$1" -C "$scratch/$2" && printf '%s' "$scratch/$2"
  else
    fail "$1 is not there, expected an archive or a folder"
  fi
}
this=${2:-$(find build/dist -name 'xformers-*-kernels-*.tar.gz' 2>/dev/null | sort -V | tail -n 1)}
[[ -n $this ]] || fail "this release has no archive in build/dist." "Fix: scripts/release/archives.sh"
before=$(unpacked "$1" before)
now=$(unpacked "$this" now)
status=0 compared=0
while read -r library; do
  other=$(find "$now" -name "$(basename "$library")" | head -n 1)
  if [[ -z $other ]]; then
    say "gone: $(basename "$library")"
    status=1
    continue
  fi
  code=0
  abidiff --no-added-syms --headers-dir1 "$before" --headers-dir2 "$now" "$library" "$other" || code=$?
  compared=$((compared + 1))
  # Bits of abidiff's status: 1 and 2 it could not compare, 8 an incompatible change; 4 alone is a change that breaks nobody.
  if ((code & 11)); then status=1; fi
done < <(find "$before" -name 'libxformers*.so' | sort)
((compared)) || fail "$1 holds no libxformers*.so"
if ((status)); then
  say "The binary interface has changed: only a new minor version may (docs/versioning.md)."
else
  say "$compared libraries: programs linked against $(basename "$1") run with this one"
fi
exit $status
