#!/usr/bin/env bash
# archives.sh [folder]   the C++ archives of build/archives (default: into build/dist): the kernels alone, and with operators
# where .venv has a torch. Libraries have versioned names (docs/versioning.md).
source "$(dirname "$0")/../common.sh"
dist=$(realpath -m "${1:-build/dist}")
export PATH="$PWD/.venv/bin:$PATH"
CXX=$(find_compiler)
export CXX
# archive <build folder> <options...>
archive() {
  local folder=$1
  shift
  step "configure $folder" cmake -G Ninja -S . -B "$folder" -DCMAKE_BUILD_TYPE=Release -DXFORMERS_DEVELOPER=OFF \
    -DXFORMERS_EXAMPLES=OFF -DXFORMERS_CUDA=OFF -DXFORMERS_SONAMES=ON "$@"
  step "build $folder" cmake --build "$folder"
  step "pack $folder" env SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" cpack --config "$folder/CPackConfig.cmake" -B "$dist"
}
archive build/archives/kernels -DXFORMERS_OPS=OFF
if .venv/bin/python -c 'import importlib.util as u; raise SystemExit(not u.find_spec("torch"))' 2>/dev/null; then
  archive build/archives/operators -DXFORMERS_OPS=ON "-DPython_EXECUTABLE=$PWD/.venv/bin/python"
else
  say "archive with operators: left out, because .venv has no torch"
fi
rm -rf "$dist/_CPack_Packages"
ls -1 "$dist"/*.tar.gz
