#!/bin/bash
# Time evaluation on one GPU: all segments of every input, as published, against halting rules, on Sudokus of 9 x 9 and on
# ARC-AGI-1, with the published HRM. About six minutes, most of them training until halting has something to look at:
#
#   bash docs/benchmarks/evaluation_gpu.sh
#
# Each evaluation says inputs/s, segments per input and the share of the measured matmul peak, and against all segments
# which answers differ and what became of the score. Run it in the root of the project, on a GPU that does nothing else.
#
# OUT=FOLDER     datasets, runs and evaluation.log (default: runs/gpu-evaluation)
# PYTHON=PATH    the interpreter (default: python)
# RULES="..."    halting rules (default: learned, an answer that stays once or twice)
# STEPS=N        training steps on Sudokus (default: 1500); on ARC 30
# INPUTS=N       Sudokus evaluated (default: 20000)
# EXTRA="..."    settings for both trainings, such as "device=cpu arch.hidden_size=32 global_batch_size=8" to try it
# BATCH=N        inputs at a time (default: 384)
set -uo pipefail

python=${PYTHON:-python}
out=${OUT:-runs/gpu-evaluation}
read -ra extra <<<"${EXTRA:-}"
read -ra rules <<<"${RULES:-learned unchanged:1 unchanged:2}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"

say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

# evaluated NAME OPTIONS...: all segments, then each rule.
evaluated() {
  local name=$1 rule
  local command=("$python" -m tools.evaluate "$out/$name-run/checkpoints/latest" --data "$out/$name-data"
    --batch-size "${BATCH:-384}" "${@:2}")
  say "$name: all segments"
  "${command[@]}" --out "$out/$name-none" 2>>"$out/errors.log" || tail -n 5 "$out/errors.log"
  for rule in "${rules[@]}"; do
    say "$name: $rule"
    "${command[@]}" --out "$out/$name-$rule" --halting "$rule" --against "$out/$name-none" 2>>"$out/errors.log" ||
      tail -n 5 "$out/errors.log"
  done
}

measure() {
  git log -1 --format='commit %h, %cs' 2>/dev/null
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
  "$python" -m data_pipeline.build sudoku --num-train 10000 --num-test "${INPUTS:-20000}" --out "$out/sudoku-data" --quiet
  "$python" -m data_pipeline.build arc-agi-1 --num-aug 8 --out "$out/arc-data" --quiet 2>/dev/null
  say "training"
  "$python" -m hrm_dist.train configs/sudoku_extreme_1k.yaml dataset=null data_path="$out/sudoku-data" \
    checkpoint_path="$out/sudoku-run" max_steps="${STEPS:-1500}" global_batch_size=384 lr=7e-5 puzzle_emb_lr=7e-5 \
    eval_interval=null "${extra[@]}" 2>&1 | tail -n 2
  "$python" -m hrm_dist.train configs/arc1.yaml dataset=null data_path="$out/arc-data" \
    checkpoint_path="$out/arc-run" max_steps=30 global_batch_size=96 eval_interval=null "${extra[@]}" 2>&1 | tail -n 2
  evaluated sudoku
  evaluated arc --num-aug "${NUM_AUG:-2}"
  say "done"
}

measure 2>&1 | tee "$out/evaluation.log"
