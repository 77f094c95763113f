#!/bin/bash
# The speedrun of configs/speedrun_sudoku.yaml on one GPU without network: new Sudokus of 9 x 9 that a solver has to guess
# at, five minutes on the clock, under ten in all:
#
#   bash docs/benchmarks/speedrun_gpu.sh
#   MINUTES=9 bash docs/benchmarks/speedrun_gpu.sh      # goes on where it ended, on the same clock
#
# It says what the run is at each evaluation, and at the end the whole record. A race of its own: scores on new puzzles
# compare with no published ones; what it measures is the speed, and that everything runs. Run it in the root of the
# project, on a GPU that does nothing else. Exit codes are those of tools.speedrun: 0 reached, 3 not.
#
# OUT=FOLDER     run folder (default: runs/gpu-speedrun); the record is in it, and speedrun_gpu.log
# PYTHON=PATH    the interpreter (default: python)
# MINUTES=N      on the clock (default: 5)
# TARGET=N       per cent to reach (default: 85)
# CSV=FOLDER     with train.csv and test.csv in place of new Sudokus, such as Sudoku-Extreme's
# EXTRA="..."    more settings and options, to try it on a CPU such as
#                "device=cpu arch.hidden_size=32 global_batch_size=8 eval_batch_size=null epochs=40 eval_interval=2
#                arch.halt_max_steps=2 dataset.subset=null dataset.side=4 dataset.num_train=60 dataset.num_test=40"
set -uo pipefail

python=${PYTHON:-python}
out=${OUT:-runs/gpu-speedrun}
read -ra extra <<<"$(tr '\n' ' ' <<<"${EXTRA:-}")"
puzzles=(--generated)
[ -n "${CSV:-}" ] && puzzles=(--csv "$CSV")
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"

measure() {
  git log -1 --format='commit %h, %cs' 2>/dev/null
  date -u +%FT%TZ
  nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
  # An evaluation every 300 steps, of 2,000 puzzles; a warm-up that suits so short a run.
  "$python" -m tools.speedrun configs/speedrun_sudoku.yaml checkpoint_path="$out" eval_interval=231 \
    eval_max_groups=2000 lr_warmup_steps=200 --target "${TARGET:-85}" --budget-min "${MINUTES:-5}" \
    "${puzzles[@]}" "${extra[@]}"
  local code=$?
  tail -n 5 "$out/speedrun.log"
  [ -f "$out/speedrun.md" ] && cat "$out/speedrun.md"
  printf '\n[%3d s] done, exit code %d\n' "$SECONDS" "$code"
  return "$code"
}

measure 2>&1 | tee -a "$out/speedrun_gpu.log"
