#!/usr/bin/env bash
# conan.sh [options of conan create...]   builds the Conan package of the kernels and a program against it, in a cache of its own.
source "$(dirname "$0")/../common.sh"
scripts/release/tools.sh
export CONAN_HOME=$PWD/build/conan PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=$PWD/build/release-tools
CXX=$(find_compiler)
export CXX
conan() { .venv/bin/python build/release-tools/bin/conan "$@"; }
[[ -f $CONAN_HOME/profiles/default ]] || conan profile detect
step "conan create" conan create . -s compiler.cppstd=20 "$@"
grep -q '^out 1 6' "$LOGS/conan-create.log" || fail "the program against the package did not run; see $LOGS/conan-create.log"
say "the packaged kernels run in a program of their own"
