// Negative items drawn from an alias table, on raw pointers. Specification: gru4rec_fast/ops/negative_sampling.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

struct NegativeDraws {
  const int64_t* threshold;     // [n_items]
  const int64_t* alias;         // [n_items]
  const float* table_log_prob;  // [n_items]
  int64_t n_items;
  int64_t steps, n;  // n draws per step
  uint32_t first_step;
  uint64_t seed;
  int64_t* items;   // [steps, n], written
  float* log_prob;  // [steps, n], written; may be null on the CPU
};

// Raises IndexError if an alias is not an item. On CUDA, a device-side assertion fails instead.
void draw_negatives(const NegativeDraws& draws);

namespace cuda {

void draw_negatives(const NegativeDraws& draws, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
