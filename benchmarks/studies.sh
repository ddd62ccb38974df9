#!/usr/bin/env bash
# The long studies behind README and docs, in parts: each part resumes where it stopped, and ends by itself.
#
#   bash benchmarks/studies.sh            # lists the parts
#   bash benchmarks/studies.sh tune ppo   # tunes one estimator for 320 steps: 6 rates x 5 seeds
#   bash benchmarks/studies.sh record     # records the rates of all finished tunings, for the parts below
#   bash benchmarks/studies.sh budgets    # all estimators to 320 steps, 14 seeds
#   bash benchmarks/studies.sh longer     # eight of them to 640 steps
#   bash benchmarks/studies.sh sweep      # eight of them at three weights of the KL
#   bash benchmarks/studies.sh instances  # eight of them on five instances of the task
#   bash benchmarks/studies.sh reviews    # eleven on the real reviews, 10 seeds
#   bash benchmarks/studies.sh arithmetic # policies and rewards of another kind, 10 seeds
#
# OUT is the folder of all parts (default: results/studies), JOBS the number of processes (default: one for each core);
# `nice -n 19 bash benchmarks/studies.sh ...` leaves the machine to others, DRY=--dry-run lists the cells of a part.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-results/studies}
options=(${JOBS:+--jobs "$JOBS"} ${DRY:-})
task=imdb:corpus=embedded
reviews=imdb:corpus=../shared/data/imdb.parquet,size=mini
trained=(reinforce rloo grpo dr-grpo reinforce-pp ppo a2c gspo cispo dapo grade grade-ste st gapped-st reinmax decoupled-st
    gumbel-rao muprop unordered-set carms relax rebar es)
leaders=(rloo grade-ste reinforce-pp gapped-st dr-grpo ppo st reinforce)
gradebench=${GRADEBENCH:-.venv/bin/gradebench}
python=${PYTHON:-.venv/bin/python}

each() { printf -- '-e %s ' "$@"; } # -e A -e B ...

case "${1:-}" in
tune)
    for name in "${@:2}"; do
        "$gradebench" tune -e "$name" -t "$task" --steps 320 --rates 1e-4,2.2e-4,4.6e-4,1e-3,2.2e-3,4.6e-3 \
            --seeds 1000-1004 --out "$out/tune-$name" ${JOBS:+--jobs "$JOBS"}
    done
    ;;
record)
    folders=() names=()
    for name in "${trained[@]}"; do
        [ -f "$out/tune-$name/tuned.json" ] && folders+=("$out/tune-$name") && names+=(-e "$name")
    done
    "$python" benchmarks/tune.py --name embedded --budgets 40,80,160,320 "${names[@]}" "${folders[@]}"
    ;;
budgets) "$gradebench" run $(each "${trained[@]}") -t "$task" --steps 320 --seeds 0-13 --out "$out/budgets" "${options[@]}" ;;
longer) "$gradebench" run $(each "${leaders[@]}") -t "$task" --steps 640 --seeds 0-13 --out "$out/longer" "${options[@]}" ;;
sweep)
    "$gradebench" run $(each "${leaders[@]}") -t "$task" --steps 320 --seeds 0-6 --sweep kl=0.02,0.05,0.15 \
        --out "$out/sweep" "${options[@]}"
    ;;
instances)
    "$gradebench" run $(each "${leaders[@]}") -t "$task" --steps 320 --seeds 0-4 --instances 5 --out "$out/instances" \
        "${options[@]}"
    ;;
reviews)
    "$gradebench" run $(each "${leaders[@]}") -e grade -e rebar -e grpo -t "$reviews" --steps 320 --seeds 0-9 --out "$out/reviews" \
        "${options[@]}"
    ;;
arithmetic)
    "$gradebench" run $(each rloo reinforce grpo dr-grpo dapo gspo cispo) -t arithmetic --seeds 0-9 --out "$out/arithmetic" \
        "${options[@]}"
    ;;
*) sed -n '2,17s/^# \{0,1\}//p' "$0" ;;
esac
