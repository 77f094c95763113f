#!/bin/bash
# How far minutes of training and breadth go on one GPU: Sudokus of 9 x 9, TRM as published beside EqR's training options,
# then as many tries as segments of one. About a quarter of an hour:
#
#   bash docs/benchmarks/breadth_gpu.sh
#
# For each of the two models tools.evaluate says the score with its interval, segments and inputs/s. Run it in the root of
# the project, on a GPU that does nothing else.
#
# OUT=FOLDER     datasets, runs and breadth.log (default: runs/gpu-breadth)
# PYTHON=PATH    the interpreter (default: python)
# SUDOKUS=FILES  CSV files of Sudokus to train and to test on, two of them, such as Sudoku-Extreme's (default: new ones)
# STEPS=N        training steps of each model (default: 3000)
# INPUTS=N       new Sudokus evaluated (default: 5000)
# STARTS="..."   numbers of starts (default: 1 8 32)
# EXTRA="..."    settings for both trainings, such as "device=cpu arch.hidden_size=32 global_batch_size=8" to try it
# BATCH=N        inputs at a time (default: 768)
set -uo pipefail

python=${PYTHON:-python}
out=${OUT:-runs/gpu-breadth}
read -ra extra <<<"${EXTRA:-}"
read -ra starts <<<"${STARTS:-1 8 32}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"

say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

# evaluated NAME OUT OPTIONS...
evaluated() {
  say "$1: ${*:3}"
  "$python" -m tools.evaluate "$out/$1-run/checkpoints/latest" --data "$out/data" --out "$out/$1-$2" \
    --batch-size "${BATCH:-768}" "${@:3}" 2>>"$out/errors.log" || tail -n 5 "$out/errors.log"
}

measure() {
  git log -1 --format='commit %h, %cs' 2>/dev/null
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
  if [ -n "${SUDOKUS:-}" ]; then
    read -ra files <<<"$SUDOKUS"
    "$python" -m data_pipeline.build sudoku --source "${files[0]}:train" --source "${files[1]}:evaluation" \
      --num-aug 1000 --out "$out/data" --quiet
  else
    "$python" -m data_pipeline.build sudoku --num-train 10000 --num-test "${INPUTS:-5000}" --out "$out/data" --quiet
  fi
  local name noise k
  for name in trm_sudoku_mlp eqr_sudoku; do
    say "train $name"
    "$python" -m hrm_dist.train "configs/$name.yaml" dataset=null data_path="$out/data" checkpoint_path="$out/$name-run" \
      max_steps="${STEPS:-3000}" lr_warmup_steps=200 eval_interval=null "${extra[@]}" 2>&1 | tail -n 2
    evaluated "$name" once
    evaluated "$name" deep --max-segments 64 --halting unchanged:2
    noise=(--segment-noise 0.3)
    [ "$name" = eqr_sudoku ] && noise=()
    for k in "${starts[@]}"; do
      [ "$k" = 1 ] && continue
      for choice in q vote first residual; do
        evaluated "$name" "$k-$choice" --starts "$k" --choose "$choice" "${noise[@]}" --halting unchanged:2
      done
    done
  done
  say "done"
}

measure 2>&1 | tee "$out/breadth.log"
