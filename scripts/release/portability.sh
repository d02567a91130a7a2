#!/usr/bin/env bash
# portability.sh [gcc|clang|aarch64]...   the kernels and their tests with warnings as errors: by g++, by clang++ 16, and cross-
# compiled for aarch64, where a part of the tests runs under qemu-user (NEON through Highway). A compiler that is not there is
# installed where root and apt are, else named and left out. Each in its folder build/port-<name>; the last lines are a table.
source "$(dirname "$0")/../common.sh"
export PATH="$PWD/.venv/bin:$PATH"
# Under emulation a test takes some 20 times as long: the families and the errors, no sweeps over attention.
readonly QUICK='Softmax.*:Merge.*:Csr.*:Sparse24.*:LinearAttention.*:BiasActDropout.*:BlockSparse.*:RowChecks.*:Philox.*:E4m3.*:'\
'AttentionErrors.*:PackedOffsets.*:AttentionModifiers.*:ShortSequences.*'
# need <program> <Debian package...>: whether the program is there now
need() {
  local program=$1
  shift
  command -v "$program" >/dev/null && return
  if [[ $(id -u) == 0 && ${XFORMERS_APT:-1} != 0 ]]; then
    apt-get install -y --no-install-recommends "$@" >"$LOGS/apt-$program.log" 2>&1 || true
  fi
  command -v "$program" >/dev/null
}
table=()
# port <name> <gtest filter> <emulator or nothing> <options...>
port() {
  local name=$1 filter=$2 emulator=$3 folder=build/port-$1 start=$SECONDS
  shift 3
  step "configure $name" cmake -G Ninja -S . -B "$folder" -DCMAKE_BUILD_TYPE=Release -DXFORMERS_OPS=OFF -DXFORMERS_CUDA=OFF \
    -DXFORMERS_EXAMPLES=OFF -DXFORMERS_DEVELOPER=ON -DXFORMERS_WERROR=ON "$@"
  step "build $name" cmake --build "$folder" --target xformers_kernels kernels_test
  # shellcheck disable=SC2086
  step "test $name" $emulator "$folder/bin/kernels_test" --gtest_brief=1 "--gtest_filter=$filter"
  table+=("$(printf '%-8s  built without a warning, %s  %d s' "$name" "$(last_line "$LOGS/test-$name.log")" $((SECONDS - start)))")
}
(($#)) || set -- gcc clang aarch64
for name in "$@"; do
  case $name in
    gcc) port gcc "$QUICK" "" "-DCMAKE_CXX_COMPILER=$(find_compiler)" ;;
    clang)
      if need clang++-16 clang-16; then
        port clang "$QUICK" "" -DCMAKE_CXX_COMPILER=clang++-16
      else
        table+=("clang     left out: there is no clang++-16")
      fi ;;
    aarch64)
      if need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu && need qemu-aarch64 qemu-user && [[ -d /usr/src/googletest ]]; then
        port aarch64 "$QUICK" "qemu-aarch64 -L /usr/aarch64-linux-gnu" --toolchain cmake/toolchains/aarch64-linux-gnu.cmake \
          "-Dhwy_DIR=$(dirname "$(dpkg -L libhwy-dev | grep 'hwy-config.cmake$')")" -DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON -DFETCHCONTENT_SOURCE_DIR_GTEST=/usr/src/googletest
      else
        table+=("aarch64   left out: needs g++-aarch64-linux-gnu, qemu-user and libgtest-dev's sources")
      fi ;;
    *) fail "unknown part '$name', expected gcc, clang or aarch64" ;;
  esac
done
say "portability"
printf '  %s\n' "${table[@]}"
