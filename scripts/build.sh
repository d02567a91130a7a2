#!/usr/bin/env bash
# build.sh <preset> <developer: ON|OFF> <target>...   configures build/<preset> where needed and builds the targets.
source "$(dirname "$0")/common.sh"
readonly preset=$1 developer=$2 cache=build/$1/CMakeCache.txt
shift 2
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" NINJA_STATUS="[%f/%t %es] "

# A tree that has the tests keeps them; the program alone doesn't need their libraries.
if [[ ! -f build/$preset/build.ninja ]] ||
  { [[ $developer == ON ]] && ! grep -q '^XFORMERS_DEVELOPER:BOOL=ON' "$cache"; }; then
  step "configure ($preset)" cmake --preset "$preset" "-DXFORMERS_DEVELOPER=$developer" \
    "-DPython_EXECUTABLE=$PWD/.venv/bin/python"
fi

say "build ($preset): $*"
start=$SECONDS
cmake --build "build/$preset" --target "$@"
say "build ($preset): $((SECONDS - start)) s"
