#!/usr/bin/env bash
# Measure all rows of the CPU results table. Write JSON files and the markdown table cpu.md.
#
#   benchmarks/run_cpu.sh [official=PATH] [ngcf=PATH] [lightgcn=PATH]
#
# PATH is a checkout of a public implementation, a "peer" (benchmarks/conftest.py). Environment variables:
#
#   OUT          folder for the results (default: build/benchmarks)
#   THREADS      number of threads (default: all cores)
#   PYTHON       Python interpreter (default: python)
#   OPTIONS      options of pytest, e.g. "--rounds 7 --turn-seconds .2"
#   WHOLE_RUN=1  also runs benchmarks/whole_run.py, which takes long
#   GROWTH=1     also runs benchmarks/growth.py
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
threads=${THREADS:-$(nproc)}
export OMP_NUM_THREADS=$threads OMP_PROC_BIND=true PYTHONPATH=.  # each thread stays on its core
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

# bench NAME [-k EXPRESSION] runs bench_NAME.py and writes OUT/NAME.json. If every row was skipped, no file is written.
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
"$python" benchmarks/cpu_table.py "${files[@]}" | tee "$out/cpu.md" || failed+=(table)
if [ "${GROWTH:-}" = 1 ]; then
  "$python" benchmarks/growth.py --threads "$threads" --json "$out/growth.json" || failed+=(growth)
fi
if [ "${WHOLE_RUN:-}" = 1 ]; then
  "$python" benchmarks/whole_run.py --peer "$official" --threads "$threads" --json "$out/whole_run.json" ||
    failed+=(whole_run)
fi
printf 'done in %d s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
