#!/usr/bin/env bash
# Everything that needs a GPU, on a bare CUDA machine (torch with CUDA and nvcc there, no network), in under 9 minutes:
# builds, runs the CUDA tests under compute-sanitizer and then plain, and times the kernels.
#
#   benchmarks/gpu/run_all.sh [FOLDER]
#
# FOLDER holds what is compared against and trained on: FOLDER/peers/<name> (checkouts) and FOLDER/data. Rows that need
# what is not there are left out, which is said. Leaves JSON, logs and table.md in OUT (default benchmarks/gpu/results).
# PYTHON names the interpreter. Ends with 0 only where everything passed.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-}
python=${PYTHON:-python3}
out=${OUT:-benchmarks/gpu/results}
mkdir -p "$out"
# Not under `set -e`: what fails is named at the end, and what comes after it still runs.
failed=()
export PYTHONPATH=. GRU4REC_FAST_BUILD=cuda GRU4REC_FAST_REQUIRE_NATIVE=1 GRU4REC_FAST_CACHE=${GRU4REC_FAST_CACHE:-$PWD/$out/cache}

# step SECONDS NAME COMMAND...: one part, with a limit of time and a log.
step() {
  local limit=$1 name=$2
  shift 2
  printf '=== %s (at %d s)\n' "$name" "$SECONDS"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 3 "$out/$name.log"
  if [ "$code" -ne 0 ]; then
    failed+=("$name (code $code, $out/$name.log)")
  fi
  return "$code"
}

finish() {
  printf '=== done in %d s\n' "$SECONDS"
  if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
  fi
}

# What needs no GPU: the tools are there, and every kernel compiles for the architectures that are supported.
step 20 tools "$python" benchmarks/gpu/tools.py || finish
step 120 kernels benchmarks/gpu/compile_kernels.sh "$out" || finish

# From here on a GPU is needed.
step 10 gpu "$python" -c '
import torch
assert torch.version.cuda, f"torch {torch.__version__} is a build without CUDA"
assert torch.cuda.is_available(), "there is no GPU here"
print(torch.cuda.get_device_name(), torch.version.cuda)' || finish
step 240 build "$python" -c '
import json, gru4rec_fast
info = gru4rec_fast.build_info()
print(json.dumps(info, indent=2))
assert info["native_cuda"], info["why_not_cuda"]' || finish

pytest=("$python" -m pytest -q -p no:cacheprovider -m cuda tests)
for tool in memcheck racecheck; do
  # Graphs are left out: under the sanitizer their replay takes minutes, and the same kernels have run by then.
  step 60 "sanitizer_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
    "${pytest[@]}" -k "same_bits"
done
step 60 tests "${pytest[@]}"
step 150 benchmarks "$python" benchmarks/gpu/bench_kernels.py --out "$out/kernels.json" ${folder:+--folder "$folder"}
step 10 table "$python" benchmarks/gpu/table.py "$out"/*.json
cp "$out/table.log" "$out/table.md"
finish
