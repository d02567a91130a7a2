#!/usr/bin/env bash
# pack.sh FOLDER   here, where there is no GPU: builds everything but the CUDA kernels and gathers in FOLDER what build.sh
# needs to compile and link them on a machine that has a GPU, nvcc and PyTorch, and neither network nor our libraries.
source "$(dirname "$0")/../common.sh"
mkdir -p "$1"
folder=$(realpath "$1") tree=build/gpu-host
readonly folder tree
CXX=$(find_compiler)
export CXX PATH="$PWD/.venv/bin:$PATH" NINJA_STATUS="[%f/%t %es] "
[[ -f $tree/build.ninja ]] || step "configure ($tree)" cmake --preset release -B "$tree" -DXFORMERS_CUDA=ON \
  -DXFORMERS_CUDA_ELSEWHERE=ON -DXFORMERS_DEVELOPER=ON -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DPython_EXECUTABLE=$PWD/.venv/bin/python"
cmake --build "$tree" --target xformers xformers_test_support kernels_cuda_tests python_package

rm -rf "${folder:?}"/{source,objects,tests,lib,python,commit}
mkdir -p "$folder"/{source,objects,tests,lib,python,include}

# Sources, as they are now.
find xformers/kernels \( -name '*.h' -o -name '*.cuh' -o -name '*.inc' -o -name '*.cu' -o -name '*.cpp' \) \
  -exec cp --parents -t "$folder/source" {} +
cp -r "$tree/cuda_instances" "$folder/source/"
git describe --always --dirty >"$folder/commit"

# Attention's CPU kernels, which CUDA's are linked with, the other libraries, the tests of the kernels, the Python package
# with its links followed.
find "$tree/xformers/kernels" -name '*.o' -not -path '*xformers_kernels_cuda*.dir*' \
  -not -path '*xformers_vector_*.dir*' -not -path '*xformers_kernels.dir*' | while read -r object; do
  strip -g -o "$folder/objects/$(tr / _ <<<"${object#"$tree"/xformers/kernels/}")" "$object"
done
for object in "$tree"/tests/CMakeFiles/kernels_cuda_tests.dir/*/*.o; do
  strip -g -o "$folder/tests/$(basename "$object")" "$object"
done
cp "$(find "$tree" -name libxformers_test_support.a -print -quit)" "$folder/tests/"
cp "$(find /usr/lib /usr/local/lib "$tree" -name libgtest.a -print -quit 2>/dev/null)" "$folder/tests/"
for library in libxformers{,_ops,_attention,_kernels}; do strip -g -o "$folder/lib/$library.so" "$tree/lib/$library.so"; done
tar -C "$tree/python" -ch --exclude='*.so' --exclude=__pycache__ . | tar -C "$folder/python" -x

# Of CUTLASS, the headers that are used.
if [[ ! -d $folder/include/cute ]]; then
  cutlass=$(sed -n 's/^XFORMERS_CUTLASS_DIR:[A-Z]*=//p' "$tree/CMakeCache.txt")
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  "$nvcc" -std=c++20 -M -arch=sm_90a "-I$cutlass" -include cute/arch/mma_sm80.hpp -include cute/arch/copy_sm75.hpp \
    -include cute/arch/copy_sm80.hpp -x cu /dev/null | tr ' \\' '\n\n' | sed -n "s#^$cutlass/##p" | sort -u |
    (cd "$cutlass" && xargs cp --parents -t "$folder/include")
fi
say "$folder: $(du -sh "$folder" | cut -f1)"
