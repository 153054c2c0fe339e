// Dropout masks on raw pointers. Specification: gru4rec_fast/ops/dropout.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

// A mask [steps, lanes, units]. Elements of 2, 4 or 8 bytes are written as bit patterns, so the kernels need no dtype.
struct DropoutMask {
  int64_t steps, lanes, units;
  uint32_t stream, first_step;
  uint64_t seed;
  uint32_t threshold;  // a unit is kept if its Philox word is at least this
  uint64_t keep_bits;  // bit pattern of 1 / (1 - p) in the mask's dtype
  int element_bytes;
};

// Writes the mask, on the CPU.
void fill_dropout_mask(const DropoutMask& mask, void* out);

namespace cuda {

void fill_dropout_mask(const DropoutMask& mask, void* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
