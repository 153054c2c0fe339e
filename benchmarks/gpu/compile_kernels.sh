#!/usr/bin/env bash
# Compile every csrc/*/cuda.cu for the supported GPU architectures, or for one of them.
#
#     benchmarks/gpu/compile_kernels.sh FOLDER
#     benchmarks/gpu/compile_kernels.sh FOLDER NUMBER    # NUMBER modulo the number of architectures chooses one
#
# The script writes the report of ptxas (registers, shared memory and spills of each kernel) to FOLDER/ptxas.txt, and a
# table of the occupancy of each kernel to FOLDER/occupancy.md. It fails if a kernel does not compile, spills registers,
# has a stack frame (an array in local memory), or lacks the 16-byte loads that it is written for. The check of the
# loads needs cuobjdump and nvdisasm (see kernel_report.py) and is left out with a message where they are missing. The
# script needs nvcc and Python, but neither torch nor a GPU. .ci/run runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
mkdir -p "$out"
nvcc=${NVCC:-nvcc}
capabilities=(80 90)
if "$nvcc" --list-gpu-code | grep -qx sm_100; then capabilities+=(100); fi
[ $# = 1 ] || capabilities=("${capabilities[$2 % ${#capabilities[@]}]}")
architectures=()
for capability in "${capabilities[@]}"; do
  architectures+=(-gencode "arch=compute_$capability,code=sm_$capability")
done
# Add PTX of the last one: the driver compiles PTX for later GPUs.
architectures+=(-gencode "arch=compute_$capability,code=compute_$capability")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# compile FOLDER SOURCE OPTION...: compile one source and write the object file and the report to FOLDER.
compile() {
  local started=$SECONDS report=$1/${2//\//.}
  mkdir "$report.kept"
  shift
  printf '# %s\n' "$1" >"$report.txt"
  "$nvcc" -std=c++17 -O3 -lineinfo --expt-relaxed-constexpr -Xptxas -v -I csrc --keep --keep-dir "$report.kept" "${@:2}" -c "$1" -o "$report.o" \
    2>>"$report.txt" || { cat "$report.txt"; return 1; }
  echo "$1: $((SECONDS - started)) s"
}
export -f compile
export nvcc
printf '%s\n' csrc/*/cuda.cu | xargs -P "$(nproc)" -I '{}' bash -c 'compile "$@"' - "$work" '{}' "${architectures[@]}"
cat "$work"/*.txt >"$out/ptxas.txt"
if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$out/ptxas.txt"; then
  echo "a kernel has a stack frame or spills registers ($out/ptxas.txt)"
  exit 1
fi
echo "$(grep -c '^# ' "$out/ptxas.txt") sources for compute capabilities ${capabilities[*]}, no stack frames, no register spills ($out/ptxas.txt)"
python3 benchmarks/gpu/kernel_report.py "$work" "$out"
