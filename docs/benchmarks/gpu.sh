#!/bin/bash
# Time training and evaluation on one GPU, ours and the published code in turns. In two calls of under five minutes:
#
#   PARTS="sudoku-384 arc-96 evaluation-sudoku-384" bash docs/benchmarks/gpu.sh [DIR]
#   PARTS="sudoku-96 trm-mlp-768 evaluation-arc-96" bash docs/benchmarks/gpu.sh [DIR]
#
# and padding computed and skipped in turns, on batches of ARC-AGI-1, in one or two more:
#
#   PARTS="padding-arc-96 attention" bash docs/benchmarks/gpu.sh
#   PARTS="padding-arc-768 padding-trm-96 padding-urm-48" bash docs/benchmarks/gpu.sh
#
# DIR is a checkout of sapientinc/HRM (commit 42410da); without it, ours is timed alone. Run it in the root of the
# project, on a GPU that does nothing else. First all parts are compiled side by side, so that the timed runs after
# them find everything in the cache; then they are timed one after another, and profiled. A part that fails, or takes
# too long, stops no other.
#
# PARTS="..."    what to time, in this order (default: the first six, which take eight minutes)
# DATA=FOLDER    a dataset of ARC-AGI-1 for the parts about padding (default: runs/gpu-arc1; built where it is missing)
# OUT=FOLDER     logs, and results.jsonl with a JSON object for each part (default: runs/gpu)
# PYTHON=PATH    the interpreter (default: python)
# STEPS=N        timed steps of each mode (default: 30)
# MINUTES=N      after which no further part is begun, and the one that runs is ended (default: 10)
# EXTRA="..."    settings and options for every part, such as "device=cpu arch.hidden_size=32 --batch-size 2" to try it
set -uo pipefail

reference=${1:-}
python=${PYTHON:-python}
out=${OUT:-runs/gpu}
data=${DATA:-runs/gpu-arc1}
steps=${STEPS:-30}
end=$((60 * ${MINUTES:-10} - 10))
extra=${EXTRA:-}
read -ra parts <<<"${PARTS:-sudoku-384 arc-96 evaluation-sudoku-384 trm-mlp-768 sudoku-96 evaluation-arc-96}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/hrm-dist-inductor}
mkdir -p "$out"
: >"$out/results.jsonl"

published=()
[ -n "$reference" ] && published=(--reference "$reference")

# The benchmark of a part with its options. ARC has the published number of puzzles, whose table takes 1.8 GB.
benchmark() {
  local arc=(configs/arc1.yaml --batch-size 96 --seq-len 900 --vocab-size 12) padding=(--data "$data" --padding)
  case $1 in
    sudoku-96) echo bench_train configs/sudoku_extreme_1k.yaml --batch-size 96 "${published[@]}" ;;
    sudoku-384) echo bench_train configs/sudoku_extreme_1k.yaml --batch-size 384 "${published[@]}" ;;
    arc-96) echo bench_train "${arc[@]}" --num-puzzles 876406 "${published[@]}" ;;
    trm-mlp-768) echo bench_train configs/trm_sudoku_mlp.yaml --batch-size 768 ;;
    evaluation-sudoku-384) echo bench_evaluate configs/sudoku_extreme_1k.yaml --batch-size 384 ;;
    padding-arc-96) echo bench_train configs/arc1.yaml --batch-size 96 "${padding[@]}" ;;
    padding-arc-768) echo bench_train configs/arc1.yaml --batch-size 768 "${padding[@]}" gradient_accumulation_steps=8 ;;
    padding-trm-96) echo bench_train configs/trm_arc1.yaml --batch-size 96 "${padding[@]}" ;;
    padding-urm-48) echo bench_train configs/urm_arc1.yaml --batch-size 48 "${padding[@]}" ;;
    evaluation-arc-96) echo bench_evaluate "${arc[@]}" ;;
    *) echo "no_part_is_called_$1" ;;
  esac
}

# run PART SECONDS SETTINGS...: run the benchmark of a part, for so long at most.
run() {
  if [ "$1" = attention ]; then
    timeout -k 5 "$2" "$python" -m tools.bench_kernels packed --data "$data"
    return
  fi
  # shellcheck disable=SC2046,SC2086 # words on purpose
  timeout -k 5 "$2" "$python" -m tools.$(benchmark "$1") compile=true "${@:3}" $extra
}

left() { echo $((end - SECONDS)); }
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

# timed NAME COMMAND...: run a command that prints a JSON object last, for a minute at most, or two if it has five
# sizes to set up; keep that and its log.
timed() {
  local name=$1 limit=75
  [[ $name = padding-* ]] && limit=150
  [ "$(left)" -lt "$limit" ] && limit=$(left)
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
  tail -n 1 "$out/$name.log" | grep '^{' >>"$out/results.jsonl"
}

git log -1 --format='commit %h, %cs' 2>/dev/null
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

if [[ " ${parts[*]} " =~ \ (padding-|attention) && ! -e $data/dataset.json ]]; then
  say "building $data"
  "$python" -m data_pipeline.build arc-agi-1 --num-aug 30 --out "$data" --workers 4 2>&1 | tail -n 6
fi

# Compile. Without recording, as memory of recorded steps is not shared between the processes.
say "compiling side by side: ${parts[*]}"
for part in "${parts[@]}"; do
  [ "$part" = attention ] && continue
  {
    run "$part" 240 --steps 1 cuda_graph=off >"$out/compile-$part.log" 2>&1
    say "compiled $part: exit code $?; $(grep -h '^[a-z]*: first' "$out/compile-$part.log" | tr '\n' ';')"
  } &
done
wait

for part in "${parts[@]}"; do
  profile=(--profile)
  [[ $part = evaluation-* ]] && profile=()
  timed "$part" run "$part" --steps "$steps" "${profile[@]}"
done

say "done; results in $out/results.jsonl"
