#!/usr/bin/env bash
# Links what the device machine runs, here, and tries it: benchmarks/gpu/build_library.sh FOLDER [PYTHON]
#
# Into FOLDER/library goes the native library for torch 2.11.0+cu130, CPython 3.12 and sm_90, in the layout of
# GRU4REC_FAST_CACHE; FOLDER/latencies is the program of latencies.cu. PYTHON (default python3.12) makes the virtual
# environment build/gpu_environment, which takes 5 GB of packages once. Needs nvcc 13; no GPU. The library is bound to the
# sources: run this again after a change in csrc/.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "$1")
environment=build/gpu_environment
mkdir -p "$folder"

if [ ! -e "$environment/ready" ]; then
  "${2:-python3.12}" -m venv --clear "$environment"
  # torch first: on Linux the registry's wheel of this version is the build for CUDA 13.0.
  "$environment/bin/pip" install --quiet torch==2.11.0
  "$environment/bin/pip" install --quiet numpy safetensors rich setuptools ninja pytest hypothesis scipy pandas
  touch "$environment/ready"
fi
# The tools that the build finds by name come from the environment.
PATH=$PWD/$environment/bin:$PATH
python -c 'import sys, torch
found = f"{torch.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}"
assert found == "2.11.0+cu130, Python 3.12", f"the device machine has torch 2.11.0+cu130 and Python 3.12, not {found}"'

export PYTHONPATH=.:benchmarks GRU4REC_FAST_BUILD=cuda TORCH_CUDA_ARCH_LIST=9.0 GRU4REC_FAST_CACHE=$folder/library
rm -rf "$GRU4REC_FAST_CACHE"
python -c 'import json, gru4rec_fast
info = gru4rec_fast.build_info()
print(json.dumps({key: value for key, value in info.items() if key != "kernels"}, indent=1))
assert info["native_cuda"], info["why_not_cuda"]'
nvcc -std=c++17 -O3 -arch=sm_90 benchmarks/gpu/latencies.cu -o "$folder/latencies"
# The tests of operators on the CPU, by the library just built; those of the GPU are collected, so that their imports are tried.
GRU4REC_FAST_REQUIRE_NATIVE=1 python -m pytest -q -p no:cacheprovider -k "not emulated and not compile" \
  tests/test_gru.py tests/test_sampled_loss.py tests/test_ranking.py tests/test_sparse_update.py \
  tests/test_session_batch.py tests/test_negative_sampling.py tests/test_dropout.py tests/test_bpr_triples.py \
  tests/test_laplacian_propagation.py tests/test_ngcf_layer.py tests/test_fused.py
python -m pytest -q -p no:cacheprovider --collect-only tests/test_cuda.py | tail -n 1
# Of what the tests compiled, nothing else travels.
for left in "$GRU4REC_FAST_CACHE"/*; do [ -e "$left/_C.so" ] || rm -rf "$left"; done
du -sh "$folder"/*
