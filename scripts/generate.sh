#!/usr/bin/env bash
# Writes text with examples/llama, several prompts at once, on the CPU: with the model that `make demo` left, or one that learns
# for a minute first. Options go to the program: `scripts/generate.sh --prompt 'class ' --tokens 400`.
source "$(dirname "$0")/common.sh"
scripts/bootstrap.sh
options=()
[[ -f build/release/CMakeCache.txt ]] || options+=(-DXFORMERS_CPU_ISAS=host)
scripts/build.sh release OFF microgpt llama "${options[@]}"
model=build/demo/model.ckpt
if [[ ! -f $model ]]; then
  model=build/generate/model.ckpt
  mkdir -p build/generate
  [[ -f $model ]] || build/release/bin/microgpt train --max-seconds 60 --evals 3 --sample-bytes 0 --device cpu \
    --python "$PWD/.venv/bin/python" --checkpoint "$model"
fi
prompts=(--prompt "def main(" --prompt "import " --prompt $'class ')
for word in "$@"; do [[ $word != --prompt* ]] || prompts=(); done
say "llama --model $model"
build/release/bin/llama --model "$model" --device cpu "${prompts[@]}" "$@"
