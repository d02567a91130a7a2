#!/usr/bin/env bash
# check_dist.sh <folder> [folder of a second build]   what is about to be released: the same bytes twice, wheels that twine and
# check-wheel-contents accept; writes SHA256SUMS and sbom.cdx.json (CycloneDX) beside it.
source "$(dirname "$0")/../common.sh"
(($#)) || fail "no folder: got nothing, expected that of the wheels." "Fix: scripts/release/check_dist.sh build/dist"
readonly dist=$1 second=${2:-}
compgen -G "$dist/*.whl" >/dev/null || fail "$dist holds no wheel." "Fix: make wheel"
scripts/bootstrap.sh
scripts/release/tools.sh
export PYTHONPATH=$PWD/build/release-tools
tool() { .venv/bin/python -m "$@"; }
sums() { (cd "$1" && find . -maxdepth 1 \( -name '*.whl' -o -name '*.tar.gz' \) -printf '%f\n' | sort | xargs sha256sum); }
sums "$dist" >"$dist/SHA256SUMS"
if [[ -n $second ]]; then
  diff "$dist/SHA256SUMS" <(sums "$second") ||
    fail "two builds differ, expected the same bytes (above: < the first, > the second)." "Fix: diffoscope $dist $second says where"
  say "two builds: the same bytes"
fi
tool twine check --strict "$dist"/*.whl
tool check_wheel_contents "$dist"/*.whl
# What is inside beside our own code, from the table of THIRD_PARTY.md: a wheel has no other record of it.
.venv/bin/python scripts/release/sbom.py "$dist" >"$dist/sbom.cdx.json"
say "checked: $(wc -l <"$dist/SHA256SUMS") files, sums in $dist/SHA256SUMS, contents in $dist/sbom.cdx.json"
