// Dropout masks on raw pointers. Specification: gru4rec_fast/ops/dropout.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

// A mask [steps, lanes, units], of elements of 2, 4 or 8 bytes that are written as bit patterns.
struct DropoutMask {
  int64_t steps, lanes, units;
  uint32_t stream, first_step;
  uint64_t seed;
  uint32_t threshold;  // a unit is kept where its word reaches this
  uint64_t kept;       // the bits of 1 / (1 - p) in the mask's dtype
  int element_bytes;
};

// On the CPU; threads share out the rows.
void fill_dropout_mask(const DropoutMask& mask, void* out);

namespace cuda {

void fill_dropout_mask(const DropoutMask& mask, void* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
