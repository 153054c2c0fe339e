// Draws of negative items from an alias table, on raw pointers. Specification: gru4rec_fast/ops/negative_sampling.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// The alias table, and what to draw from it. A draw chooses a column of the table (one per item) and a random level.
// The drawn item is the column's own item if the level is below the column's threshold, else the column's alias.
struct NegativeDraws {
  const int64_t* threshold;     // [n_items]
  const int64_t* alias;         // [n_items]
  const float* table_log_prob;  // [n_items], the log-probability of each item
  int64_t n_items;
  int64_t steps, n;  // the number of steps, and of draws per step
  uint32_t first_step;
  uint64_t seed;
  int64_t* items;                    // [steps, n], written
  float* log_prob;                   // [steps, n], written; may be null on the CPU
  const int64_t* counter = nullptr;  // CUDA: its value is added to the step; null: nothing is added
};

// Draws on the CPU. Raises IndexError if an alias is not an item.
void draw_negatives(const NegativeDraws& draws);

namespace cuda {

// Draws on CUDA. If an alias is not an item, a device-side assertion fails.
void draw_negatives(const NegativeDraws& draws, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
