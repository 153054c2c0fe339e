#!/usr/bin/env bash
# Everything that needs a GPU, on a bare CUDA machine (torch with CUDA and nvcc there, no network), in under 9 minutes:
# builds, runs the CUDA tests, measures every GPU row, and runs every kernel family under compute-sanitizer.
#
#   benchmarks/gpu/run_all.sh [FOLDER]
#
# FOLDER, made by prepare_folder.py, holds what is compared against and trained on; rows that need what is not there are
# left out, which is said. Into OUT (default benchmarks/results/gpu) go four files: table.md, gpu.json, ptxas.txt and
# run.log, which has the whole output of every part. PYTHON names the interpreter, SECONDS_ALL (530) the whole time: no
# part runs beyond it. DEVICE=cpu tries out the parts that can run without a GPU, on small sizes, by
# the operators' implementation IMPL. Ends with 0 only where everything passed.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
deadline=${SECONDS_ALL:-530}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
: >"$out/run.log"
part=$(mktemp)
trap 'rm -f "$part"' EXIT
# Not under `set -e`: what fails is named at the end, and what comes after it still runs.
failed=()
export PYTHONPATH=.:benchmarks GRU4REC_FAST_CACHE=${GRU4REC_FAST_CACHE:-$PWD/build/gpu_cache}

# step SECONDS NAME COMMAND...: one part, with a limit of time; its output goes to run.log, its last lines are shown.
step() {
  local limit=$1 name=$2 left=$((deadline - SECONDS))
  shift 2
  if [ "$left" -lt "$limit" ]; then limit=$left; fi
  printf '=== %s (at %d s, at most %d s)\n' "$name" "$SECONDS" "$limit" | tee -a "$out/run.log"
  local code=124
  if [ "$limit" -gt 0 ]; then
    timeout --kill-after 5 "$limit" "$@" >"$part" 2>&1
    code=$?
    cat "$part" >>"$out/run.log"
    tail -n "${SHOWN:-3}" "$part"
  fi
  if [ "$code" -ne 0 ]; then failed+=("$name (code $code, see run.log)"); fi
  return "$code"
}

finish() {
  printf '=== done in %d s\n' "$SECONDS"
  if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
  fi
  exit 0
}

measure() {
  # A row that was begun may take half a minute; the sanitizers come behind.
  local left=$((deadline - SECONDS - 120))
  SHOWN=60 step 250 rows "$python" -W ignore -m gpu.bench --out "$out/gpu.json" --seconds "$((left < 220 ? left : 220))" \
    ${folder:+--folder "$folder"} "$@"
  step 20 table "$python" -m gpu.table "$out/gpu.json" --out "$out/table.md"
}

rm -f "$out/gpu.json"
if [ "$device" = cpu ]; then
  measure --device cpu --tiny ${IMPL:+--impl "$IMPL"}
  finish
fi
export GRU4REC_FAST_BUILD=cuda GRU4REC_FAST_REQUIRE_NATIVE=1

step 20 tools "$python" benchmarks/gpu/tools.py || finish

# From here on a GPU is needed.
SHOWN=1 step 20 gpu "$python" -c '
import torch
assert torch.version.cuda, f"torch {torch.__version__} is a build without CUDA"
assert torch.cuda.is_available(), "there is no GPU here"
print(torch.cuda.get_device_name(), "capability", "{}.{}".format(*torch.cuda.get_device_capability()))' || finish
# The library is built for this GPU alone.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(awk '/ capability / { print $NF }' "$part")}
step "$((deadline / 2))" build "$python" -c '
import json, gru4rec_fast
info = gru4rec_fast.build_info()
print(json.dumps(info, indent=2))
assert info["native_cuda"], info["why_not_cuda"]' || finish

pytest=("$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py)
step 150 tests "${pytest[@]}" -m cuda
measure
# Each family on small sizes: tests marked "sanitizer". Of the kernels only ours are looked at (namespace grf), and every
# tensor is an allocation of its own, so that what lies beyond it is nobody's.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step 60 "sanitizer_$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      --report-api-errors no --kernel-regex kns=grf "${pytest[@]}" -m sanitizer
  done
else
  failed+=("sanitizer (compute-sanitizer, of the CUDA toolkit, is not on PATH)")
fi
# For all supported architectures, in what time is left: .ci/run does the same on every change.
step "$((deadline / 3))" kernels benchmarks/gpu/compile_kernels.sh "$out"
finish
