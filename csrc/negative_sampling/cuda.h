// Launcher of the draws from an alias table. Specification: gru4rec_fast/reference/negative_sampling.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf::cuda {

struct NegativeDraws {
  const int64_t* threshold;     // [n_items]
  const int64_t* alias;         // [n_items]
  const float* table_log_prob;  // [n_items]
  int64_t n_items;
  int64_t steps, n;
  uint32_t first_step;
  uint64_t seed;
  int64_t* items;   // [steps, n], written
  float* log_prob;  // [steps, n], written
};

void draw_negatives(const NegativeDraws& draws, cudaStream_t stream);

}  // namespace grf::cuda
