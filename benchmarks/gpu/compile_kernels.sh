#!/usr/bin/env bash
# Compiles every csrc/*/cuda.cu for the supported architectures, without torch, and keeps what ptxas says of registers,
# shared memory and spills: benchmarks/gpu/compile_kernels.sh FOLDER writes FOLDER/ptxas.txt. Fails where a kernel does
# not compile or spills registers. For .ci/run; needs nvcc, no GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
mkdir -p "$out"
nvcc=${NVCC:-nvcc}
architectures=(-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90)
# Newer ones where this nvcc knows them, and PTX of the newest named for those to come.
if "$nvcc" --list-gpu-code | grep -qx sm_100; then
  architectures+=(-gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100)
else
  architectures+=(-gencode arch=compute_90,code=compute_90)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Several at once, each with a report of its own.
compile() {
  local begin=$SECONDS report=$1/${2//\//.}
  shift
  printf '# %s\n' "$1" >"$report.txt"
  "$nvcc" -std=c++17 -O3 -lineinfo --expt-relaxed-constexpr -Xptxas -v -I csrc "${@:2}" -c "$1" -o "$report.o" \
    2>>"$report.txt" || { cat "$report.txt"; return 1; }
  echo "$1: $((SECONDS - begin)) s"
}
export -f compile
export nvcc
printf '%s\n' csrc/*/cuda.cu | xargs -P "$(nproc)" -I '{}' bash -c 'compile "$@"' - "$work" '{}' "${architectures[@]}"
cat "$work"/*.txt >"$out/ptxas.txt"
if grep -E '[1-9][0-9]* bytes spill' "$out/ptxas.txt"; then
  echo "a kernel spills registers ($out/ptxas.txt)"
  exit 1
fi
echo "$(grep -c '^# ' "$out/ptxas.txt") sources, no register spills ($out/ptxas.txt)"
