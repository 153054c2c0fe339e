// Masks of inverted dropout, on raw pointers. Specification: gru4rec_fast/ops/dropout.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// A mask [steps, lanes, units]; a lane is one of the sessions of a mini-batch. Elements of 2, 4 or 8 bytes are written
// as bit patterns, so the kernels need not know the dtype.
struct DropoutMask {
  int64_t steps, lanes, units;
  uint32_t philox_stream;  // first word of the Philox counter; each use of the seed has its own (not a CUDA stream)
  uint32_t first_step;     // number of the mask's first step; the step number is the second word of the counter
  uint64_t seed;
  uint32_t threshold;  // a unit is kept if its Philox word is at least the threshold
  uint64_t keep_bits;  // bit pattern of 1 / (1 - p) in the mask's dtype
  int element_bytes;
  const int64_t* counter = nullptr;  // CUDA: its value is added to the step; null: nothing is added
  int64_t first_lane = 0;            // CPU: number of the mask's first lane
};

// Writes the mask to `out`, an array of steps * lanes * units elements, on the CPU.
void fill_dropout_mask(const DropoutMask& mask, void* out);

namespace cuda {

// Writes the mask to `out`, by a kernel on a CUDA stream.
void fill_dropout_mask(const DropoutMask& mask, void* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
