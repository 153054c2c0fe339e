// Draws from an alias table on raw pointers. Specification: gru4rec_fast/ops/negative_sampling.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

struct NegativeDraws {
  const int64_t* threshold;     // [n_items]
  const int64_t* alias;         // [n_items]
  const float* table_log_prob;  // [n_items]
  int64_t n_items;
  int64_t steps, n;
  uint32_t first_step;
  uint64_t seed;
  int64_t* items;   // [steps, n], written
  float* log_prob;  // [steps, n], written; on the CPU it may be null
};

// IndexError where an alias is no item; on CUDA the kernel stops.
void draw_negatives(const NegativeDraws& draws);

namespace cuda {

void draw_negatives(const NegativeDraws& draws, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
