#!/usr/bin/env bash
# Every CPU row in one call: JSON files and one markdown table in OUT (default build/benchmarks).
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
out=${OUT:-build/benchmarks}
mkdir -p "$out"
peers=()
official=
for peer in "$@"; do
  peers+=(--peer "$peer")
  if [[ $peer == official=* ]]; then official=$peer; fi
done
if [ "${WHOLE_RUN:-}" = 1 ] && [ -z "$official" ]; then
  echo "WHOLE_RUN=1 needs official=PATH" >&2
  exit 2
fi
failed=()
files=()

# bench NAME [-k EXPRESSION]: one pytest run of bench_NAME.py, its JSON in OUT/NAME.json. Without a row there is none.
bench() {
  local name=$1 file=$out/$1.json
  shift
  rm -f "$file"
  printf '=== %s (%d s)\n' "$name" "$SECONDS"
  # shellcheck disable=SC2086
  "$python" -m pytest -q -p no:warnings "benchmarks/bench_$name.py" "$@" "${peers[@]}" --threads "$threads" \
    ${OPTIONS:-} --benchmark-columns=median,iqr,rounds --benchmark-json="$file" || failed+=("$name")
  if [ -s "$file" ]; then files+=("$file"); else failed+=("$name (no row)"); fi
}

bench training -k real
bench session_batch -k real
bench evaluation
bench graph_training
bench laplacian_propagation
"$python" benchmarks/report.py "${files[@]}" | tee "$out/cpu.md" || failed+=(table)
if [ "${GROWTH:-}" = 1 ]; then
  "$python" benchmarks/growth.py --threads "$threads" --json "$out/growth.json" || failed+=(growth)
fi
if [ "${WHOLE_RUN:-}" = 1 ]; then
  "$python" benchmarks/whole_run.py --peer "$official" --threads "$threads" --json "$out/whole_run.json" ||
    failed+=(whole_run)
fi
printf 'done in %d s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
