#!/usr/bin/env bash
# Compile every csrc/*/cuda.cu for the supported GPU architectures.
#
#     benchmarks/gpu/compile_kernels.sh FOLDER
#
# The script writes the report of ptxas (registers, shared memory and spills of each kernel) to FOLDER/ptxas.txt. It
# fails if a kernel does not compile or spills registers. It needs nvcc, but neither torch nor a GPU. .ci/run runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
mkdir -p "$out"
nvcc=${NVCC:-nvcc}
architectures=(-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90)
# Add sm_100 if this nvcc supports it. Add PTX of the newest architecture: the driver compiles PTX for later GPUs.
if "$nvcc" --list-gpu-code | grep -qx sm_100; then
  architectures+=(-gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100)
else
  architectures+=(-gencode arch=compute_90,code=compute_90)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# compile FOLDER SOURCE OPTION...: compile one source and write the object file and the report to FOLDER.
compile() {
  local started=$SECONDS report=$1/${2//\//.}
  shift
  printf '# %s\n' "$1" >"$report.txt"
  "$nvcc" -std=c++17 -O3 -lineinfo --expt-relaxed-constexpr -Xptxas -v -I csrc "${@:2}" -c "$1" -o "$report.o" \
    2>>"$report.txt" || { cat "$report.txt"; return 1; }
  echo "$1: $((SECONDS - started)) s"
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
