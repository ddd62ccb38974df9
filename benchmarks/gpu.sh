#!/usr/bin/env bash
# Everything worth measuring on a GPU, in one call of less than 9 minutes, into $OUT (default: results/gpu).
#
#   bash benchmarks/gpu.sh
#
# Needs torch, transformers and what pip installs without dependencies; `datasets` and a network are not needed: the
# comparison runs on the embedded corpus. Each part has a limit of its own, so that one that hangs leaves the others.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-results/gpu}
mkdir -p "$out"
export GRADEBENCH_CACHE="${GRADEBENCH_CACHE:-$out/cache}"

{ date -u +%F; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; } | tee "$out/machine.txt"
pip install --quiet --no-deps --no-build-isolation .
python -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)' \
    | tee -a "$out/machine.txt"

part() { # limit in seconds, name, command: a part that fails is said and doesn't end the others
    local limit=$1 name=$2
    shift 2
    echo "== $name: $*" | tee -a "$out/log.txt"
    timeout "$limit" "$@" 2>&1 | tee -a "$out/log.txt" || echo "$name ended with an error or at its limit of $limit s"
}

gpt2=(--width 768 --layers 12 --heads 12 --vocabulary 50257) # the shape of GPT-2 small
part 150 straight-through python benchmarks/straight_through.py --device cuda --dtype bfloat16 "${gpt2[@]}" \
    --horizons 32,128 --csv "$out/straight_through.csv"
part 90 steps python benchmarks/steps.py --device cuda --csv "$out/steps.csv"
part 240 comparison gradebench run -e reinforce -e rloo -e ppo -e grpo -e st -e grade-ste -e grade -e rebar \
    -t imdb:corpus=embedded --seeds 0-4 --device cuda --jobs 1 --out "$out/imdb-embedded"
rm -rf "$out/cache"
