// Dropout masks on raw pointers. Specification: gru4rec_fast/reference/dropout.py.
#pragma once

#include <cstdint>

namespace grf {

// Which random numbers a mask [steps, lanes, units] is made of; sizes and counters fit 32 bits.
struct DropoutMask {
  int64_t steps, lanes, units;
  double p;
  int64_t seed, stream, step;
};

// Writes 1 / (1 - p) where a unit is kept, else 0. `bits_t` is the unsigned integer of the elements' size, `kept` the
// bits of 1 / (1 - p). Threads share out the rows.
template <typename bits_t>
void fill_dropout_mask(const DropoutMask& mask, bits_t kept, bits_t* out);

}  // namespace grf
