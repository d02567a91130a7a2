#!/usr/bin/env bash
# docs.sh [--links]   the documentation as a site in build/docs/html, from docs/, the docstrings and the public headers.
# A warning is an error. --links instead lists the links that lead outside, and asks each whether it is there.
source "$(dirname "$0")/common.sh"
readonly site=build/docs stage=$PWD/build/docs/source
scripts/bootstrap.sh
if ! command -v doxygen >/dev/null; then
  if [[ ${XFORMERS_APT:-1} != 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    step "Doxygen" bash -c "apt-get install -y --no-install-recommends doxygen ||
      { apt-get update && apt-get install -y --no-install-recommends doxygen; }"
  else
    fail "the C++ reference needs Doxygen: found none." "Fix: sudo apt-get install doxygen"
  fi
fi
packages=$PWD/.venv/docs-$(cksum <requirements-docs.txt | cut -d' ' -f1)
if [[ ! -d $packages ]]; then
  step "Sphinx" bash -c ".venv/bin/python -m pip install --disable-pip-version-check --target '$packages.new' \
    -r requirements-docs.txt && mv '$packages.new' '$packages'"
fi
options=()
[[ -f build/release/CMakeCache.txt ]] || options+=(-DXFORMERS_CPU_ISAS=host)
scripts/build.sh release ON xformers python_package "${options[@]}"
export PYTHONPATH="$packages:$PWD/build/release/python" XFORMERS_DOXYGEN_XML=$PWD/$site/xml

start=$SECONDS
rm -rf "$site" && mkdir -p "$stage" "$XFORMERS_DOXYGEN_XML"
python=$PWD/.venv/bin/python
"$python" docs/site/stage.py "$stage"
"$python" docs/site/performance.py "$stage/performance.md"
"$python" docs/site/pictures.py "$stage"
"$python" docs/site/public_names.py "$stage"
{
  cat docs/site/Doxyfile
  printf 'INPUT = %s\n' "$(tr '\n' ' ' <build/release/public_headers.txt)"
  printf 'OUTPUT_DIRECTORY = %s\nSTRIP_FROM_PATH = %s\nINPUT_FILTER = "%s docs/site/header_filter.py"\n' "$site" "$PWD" "$python"
} >"$site/Doxyfile"
step "Doxygen's reading" doxygen "$site/Doxyfile"
"$python" docs/site/public_headers.py "$stage" build/release/public_headers.txt "$XFORMERS_DOXYGEN_XML"
sphinx() { "$python" -m sphinx -W --keep-going -q -j auto -c docs/site "$@"; }
if [[ ${1:-} == --links ]]; then
  sphinx -b linkcheck "$stage" "$site/links"
else
  sphinx -b html -d "$site/doctrees" "$stage" "$site/html"
  "$python" docs/site/check_site.py "$site/html"
  say "documentation: $((SECONDS - start)) s, 0 warnings; open $site/html/index.html"
fi
