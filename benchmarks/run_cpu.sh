#!/usr/bin/env bash
# Every CPU row in one call: JSON files and one markdown table in benchmarks/results/.
#
#   benchmarks/run_cpu.sh [official=PATH] [ngcf=PATH] [lightgcn=PATH]
#
# THREADS (default: every core), PYTHON and OPTIONS (of pytest, e.g. "--rounds 7 --turn-seconds .2") may be set;
# WHOLE_RUN=1 adds the whole diginetica run, which takes long, and GROWTH=1 the curves of benchmarks/growth.py.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
threads=${THREADS:-$(nproc)}
export OMP_NUM_THREADS=$threads PYTHONPATH=.
results=benchmarks/results
mkdir -p "$results"
peers=()
official=
for peer in "$@"; do
  peers+=(--peer "$peer")
  if [[ $peer == official=* ]]; then official=$peer; fi
done
failed=()

# bench NAME FILES... [-k EXPRESSION]: one pytest run, its JSON in results/NAME.json.
bench() {
  local name=$1
  shift
  printf '=== %s (%d s)\n' "$name" "$SECONDS"
  # shellcheck disable=SC2086
  "$python" -m pytest -q -p no:warnings "$@" "${peers[@]}" --threads "$threads" ${OPTIONS:-} \
    --benchmark-columns=median,iqr,rounds --benchmark-json="$results/$name.json" || failed+=("$name")
}

bench training benchmarks/bench_training.py -k real
bench session_batch benchmarks/bench_session_batch.py -k real
bench evaluation benchmarks/bench_evaluation.py
for name in graph_training laplacian; do
  if [ -e "benchmarks/bench_$name.py" ]; then bench "$name" "benchmarks/bench_$name.py"; fi
done
files=()
for name in training session_batch evaluation graph_training laplacian; do
  if [ -s "$results/$name.json" ]; then files+=("$results/$name.json"); fi
done
"$python" benchmarks/report.py "${files[@]}" | tee "$results/cpu.md"
if [ "${GROWTH:-}" = 1 ]; then "$python" benchmarks/growth.py --threads "$threads" || failed+=(growth); fi
if [ "${WHOLE_RUN:-}" = 1 ] && [ -n "$official" ]; then
  "$python" benchmarks/whole_run.py --peer "$official" --threads "$threads" || failed+=(whole_run)
fi
printf 'done in %d s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
