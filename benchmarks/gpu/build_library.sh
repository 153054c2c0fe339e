#!/usr/bin/env bash
# Build and test the native library for the GPU machine. This needs nvcc 13, but no GPU.
#
#     benchmarks/gpu/build_library.sh FOLDER [PYTHON]
#
# The script writes FOLDER/library and FOLDER/latencies. FOLDER/library is a cache folder (GRU4REC_FAST_CACHE) with the
# library for torch 2.11.0+cu130, CPython 3.12 and sm_90. FOLDER/latencies is the compiled latencies.cu. The first run
# creates the virtual environment build/gpu_environment with PYTHON (default python3.12), whose packages take 5 GB. Run
# this script again after a change in csrc/, since the package looks up the library by a hash of the sources.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "$1")
environment=build/gpu_environment
mkdir -p "$folder"

if [ ! -e "$environment/ready" ]; then
  "${2:-python3.12}" -m venv --clear "$environment"
  # On Linux, the wheel of torch 2.11.0 is the build for CUDA 13.0.
  "$environment/bin/pip" install --quiet torch==2.11.0
  "$environment/bin/pip" install --quiet numpy safetensors rich setuptools ninja pytest hypothesis scipy pandas
  touch "$environment/ready"
fi
# The build finds ninja on PATH.
PATH=$PWD/$environment/bin:$PATH
python -c 'import sys, torch
found = f"{torch.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}"
assert found == "2.11.0+cu130, Python 3.12", f"the GPU machine has torch 2.11.0+cu130 and Python 3.12, but this environment has {found}"'

export PYTHONPATH=.:benchmarks GRU4REC_FAST_BUILD=cuda TORCH_CUDA_ARCH_LIST=9.0 GRU4REC_FAST_CACHE=$folder/library
rm -rf "$GRU4REC_FAST_CACHE"
python -c 'import json, gru4rec_fast
info = gru4rec_fast.build_info()
print(json.dumps({key: value for key, value in info.items() if key != "kernels"}, indent=1))
assert info["native_cuda"], info["why_not_cuda"]'
nvcc -std=c++17 -O3 -arch=sm_90 benchmarks/gpu/latencies.cu -o "$folder/latencies"
# Run the operators' CPU tests with the new library. Without a GPU, test_cuda.py is only collected, to test its imports.
GRU4REC_FAST_REQUIRE_NATIVE=1 python -m pytest -q -p no:cacheprovider -k "not emulated and not compile" \
  tests/test_gru.py tests/test_sampled_loss.py tests/test_ranking.py tests/test_sparse_update.py \
  tests/test_session_batch.py tests/test_negative_sampling.py tests/test_dropout.py tests/test_bpr_triples.py \
  tests/test_laplacian_propagation.py tests/test_ngcf_layer.py tests/test_fused_step.py
python -m pytest -q -p no:cacheprovider --collect-only tests/test_cuda.py | tail -n 1
# The tests compiled other libraries into the cache folder; keep only the package's library, _C.so.
for entry in "$GRU4REC_FAST_CACHE"/*; do [ -e "$entry/_C.so" ] || rm -rf "$entry"; done
du -sh "$folder"/*
