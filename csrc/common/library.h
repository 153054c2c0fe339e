// The namespace that operators are registered under: gru4rec_fast, or gru4rec_fast_emulated in the build that runs the
// CUDA kernels on the CPU (tools/cuda_emulator). schema.cpp defines the same schemas in both.
#pragma once

#include <torch/library.h>

#ifdef GRF_EMULATED
#define GRF_LIBRARY gru4rec_fast_emulated
#define GRF_LIBRARY_NAME "gru4rec_fast_emulated"
#else
#define GRF_LIBRARY gru4rec_fast
#define GRF_LIBRARY_NAME "gru4rec_fast"
#endif

// torch's registration macros, with `name` expanded first: GRF_LIBRARY becomes gru4rec_fast.
#define GRF_TORCH_LIBRARY(name, m) TORCH_LIBRARY(name, m)
#define GRF_TORCH_LIBRARY_IMPL(name, key, m) TORCH_LIBRARY_IMPL(name, key, m)
