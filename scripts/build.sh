#!/usr/bin/env bash
# build.sh <preset> <developer: ON|OFF> <target or -Doption>...   configures build/<preset> where needed and builds the
# targets. Options of an earlier call stay.
source "$(dirname "$0")/common.sh"
readonly preset=$1 developer=$2 cache=build/$1/CMakeCache.txt
shift 2
targets=() options=()
for word in "$@"; do if [[ $word == -D* ]]; then options+=("$word"); else targets+=("$word"); fi; done
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" NINJA_STATUS="[%f/%t %es] "

# A tree that has the tests keeps them; the program alone doesn't need their libraries.
if [[ ! -f build/$preset/build.ninja ]] ||
  { [[ $developer == ON ]] && ! grep -q '^XFORMERS_DEVELOPER:BOOL=ON' "$cache"; } ||
  { ((${#options[@]})) && [[ $(cat "build/$preset/.options" 2>/dev/null) != "${options[*]}" ]]; }; then
  step "configure ($preset)" cmake --preset "$preset" "-DXFORMERS_DEVELOPER=$developer" \
    "-DPython_EXECUTABLE=$PWD/.venv/bin/python" "${options[@]}"
  printf '%s' "${options[*]}" >"build/$preset/.options"
fi

say "build ($preset): ${targets[*]}"
start=$SECONDS
cmake --build "build/$preset" --target "${targets[@]}"
say "build ($preset): $((SECONDS - start)) s"
