#!/usr/bin/env bash
# build.sh FOLDER OUT [FALLBACK]   there, on the machine with the GPU: compiles the CUDA kernels of pack.sh's FOLDER with
# all cores, links libxformers_attention_kernels.so and the tests into OUT. A unit that does not compile is taken from
# FALLBACK, an earlier FOLDER. Environment:
#   XFORMERS_GENCODE   default: sm_90a's own code
#   XFORMERS_DEFINES   further compiler options
#   XFORMERS_UNITS     regex: compiles those units alone, and takes the rest from XFORMERS_REUSE, another OUT
set -uo pipefail
mkdir -p "$2"
folder=$(realpath "$1") out=$(realpath "$2") fallback=${3:+$(realpath "$3")}
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
export nvcc folder out fallback gencode=${XFORMERS_GENCODE:--gencode=arch=compute_90a,code=sm_90a} defines=${XFORMERS_DEFINES:-}
mkdir -p "$out/objects" "$out/lib" "$out/python"

compile() {  # unit
  local object warnings
  object=$out/objects/$(tr / _ <<<"$1").o
  for root in "$folder" $fallback; do
    warnings=$( (cd "$root/source" && "$nvcc" -std=c++20 -O3 -DNDEBUG -Xcompiler -fPIC,-fvisibility-inlines-hidden \
      --expt-relaxed-constexpr --compress-mode=size -Xptxas=--warn-on-spills -I. -isystem ../include $gencode $defines -c "$1" -o "$object") 2>&1) && break
    echo "FAILED in $root: $1"
    grep -E "error" <<<"$warnings" | head -5
  done
  grep -i spill <<<"$warnings"
}
export -f compile
# The widest heads take longest: they begin.
units=$(grep -E "${XFORMERS_UNITS:-.}" "$folder/source/cuda_instances/units.txt" |
  sed -E 's/.*_([0-9]+)\.cu$/\1 &/; t; s/^/64 /' | sort -rn | cut -d' ' -f2)
xargs -P "$(nproc)" -I{} bash -c 'compile {}' <<<"$units"
[[ -z ${XFORMERS_REUSE:-} ]] || cp -n "$XFORMERS_REUSE"/objects/*.o "$out/objects/"
"$nvcc" -shared -Xcompiler -fPIC -o "$out/lib/libxformers_attention_kernels.so" "$folder"/objects/*.o "$out"/objects/*.o \
  -cudart static -lpthread -ldl -lrt || echo "FAILED: link"
cp "$folder"/lib/*.so "$out/lib/"
# In the package the kernels lie by themselves, the operators over them in the folder of their torch.
cp -r "$folder/python/." "$out/python/" && cp "$out"/lib/*_kernels.so "$out/python/xformers/" &&
  cp "$out"/lib/libxformers{,_ops,_attention}.so "$(dirname "$out"/python/xformers/torch*/_torch_library.json)/"
"$nvcc" -o "$out/kernels_cuda_test" "$folder"/tests/*.o "$folder"/tests/libxformers_test_support.a "$folder"/tests/libgtest.a \
  -L"$out/lib" -lxformers_kernels -lxformers_attention_kernels -Xlinker -rpath="$out/lib" -cudart static -lpthread -ldl -lrt ||
  echo "FAILED: link of the tests"
