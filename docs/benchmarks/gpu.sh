#!/bin/bash
# Time training on one GPU, ours and the published code in turns, in under five minutes.
#
#   bash docs/benchmarks/gpu.sh [DIR]
#
# DIR is a checkout of sapientinc/HRM (commit 42410da); without it, ours is timed alone. Run it in the root of the
# project, on a GPU that does nothing else. First all shapes are compiled side by side, so that the timed runs after
# them find everything in the cache; then they are timed one after another, and two of them are profiled. A part that
# fails, or takes too long, stops no other.
#
# OUT=FOLDER     logs, and results.jsonl with a JSON object for each part (default: runs/gpu)
# PYTHON=PATH    the interpreter (default: python)
# STEPS=N        timed steps of each mode (default: 30)
# MINUTES=N      after which no further part is begun, and the one that runs is ended (default: 5)
# EXTRA="..."    settings and options for every part, such as "device=cpu arch.hidden_size=32 --batch-size 2" to try it
set -uo pipefail

reference=${1:-}
python=${PYTHON:-python}
out=${OUT:-runs/gpu}
steps=${STEPS:-30}
end=$((60 * ${MINUTES:-5} - 10))
extra=${EXTRA:-}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/hrm-dist-inductor}
mkdir -p "$out"
: >"$out/results.jsonl"

published=()
[ -n "$reference" ] && published=(--reference "$reference")

# The options of a part. ARC has the published number of puzzles, whose table takes 1.8 GB.
options() {
  case $1 in
    sudoku-96) echo configs/sudoku_extreme_1k.yaml --batch-size 96 "${published[@]}" ;;
    sudoku-384) echo configs/sudoku_extreme_1k.yaml --batch-size 384 "${published[@]}" ;;
    arc-96) echo configs/arc1.yaml --batch-size 96 --seq-len 900 --vocab-size 12 --num-puzzles 876406 "${published[@]}" ;;
    trm-mlp-768) echo configs/trm_sudoku_mlp.yaml --batch-size 768 ;;
  esac
}

# train PART SECONDS SETTINGS...: run the benchmark of a part, for so long at most.
train() {
  # shellcheck disable=SC2046,SC2086 # words on purpose
  timeout -k 5 "$2" "$python" -m tools.bench_train $(options "$1") compile=true "${@:3}" $extra
}

# evaluation PART SECONDS SETTINGS...: the same of segments of evaluation.
evaluation() {
  local shape=(configs/sudoku_extreme_1k.yaml --batch-size 384)
  [ "$1" = arc-96 ] && shape=(configs/arc1.yaml --batch-size 96 --seq-len 900 --vocab-size 12)
  # shellcheck disable=SC2086 # words on purpose
  timeout -k 5 "$2" "$python" -m tools.bench_evaluate "${shape[@]}" "${@:3}" $extra
}

left() { echo $((end - SECONDS)); }
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

# timed NAME COMMAND...: run a command that prints a JSON object last, for a minute at most; keep that and its log.
timed() {
  local name=$1 limit=$(($(left) < 75 ? $(left) : 75))
  if [ "$limit" -lt 10 ]; then
    say "$name: left out, no time"
    return
  fi
  say "$name"
  "${@:2:2}" "$limit" "${@:4}" 2>"$out/$name.err" | tee "$out/$name.log"
  local code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    say "$name: failed with $code (124: took more than $limit s)"
    tail -n 15 "$out/$name.err"
    return 1
  fi
  tail -n 1 "$out/$name.log" >>"$out/results.jsonl"
}

git log -1 --format='commit %h, %cs' 2>/dev/null
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

# Compile. Without recording, as memory of recorded steps is not shared between the processes.
no_graph=()
grep -q '^    cuda_graph:' hrm_dist/config/schema.py && no_graph=(cuda_graph=off)
parts=(arc-96 sudoku-384 sudoku-96 trm-mlp-768)
say "compiling side by side: ${parts[*]}"
for part in "${parts[@]}"; do
  {
    train "$part" 150 --steps 1 "${no_graph[@]}" >"$out/compile-$part.log" 2>&1
    say "compiled $part: exit code $?; $(grep -h 'first step' "$out/compile-$part.log" | tr '\n' ';')"
  } &
done
wait

# training PART: time and profile its steps; where that fails, without recording them.
training() {
  timed "$1" train "$1" --steps "$steps" --profile && return
  [ ${#no_graph[@]} -eq 0 ] || timed "$1-not-recorded" train "$1" --steps "$steps" --profile "${no_graph[@]}"
}

training sudoku-384
training arc-96
timed evaluation-sudoku-384 evaluation sudoku-384 --steps "$steps"
training trm-mlp-768
training sudoku-96
timed evaluation-arc-96 evaluation arc-96 --steps "$steps"

say "done; results in $out/results.jsonl"
