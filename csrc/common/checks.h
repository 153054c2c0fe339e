// Checks of scalar arguments that several operators share. Errors name the argument and its value.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <cstdint>

namespace grf {

// Checks the seed and the steps of Philox random numbers (common/philox.h). The seed is the key, a non-negative int64.
// The step numbers step .. step + steps - 1 must fit in a 32-bit word of Philox's counter.
inline void check_counters(int64_t seed, int64_t step, int64_t steps) {
  constexpr int64_t kWordRange = int64_t{1} << 32;
  TORCH_CHECK_VALUE(seed >= 0, "seed=", seed, ": must be in [0, 2**63)");
  TORCH_CHECK_VALUE(steps >= 0, "steps=", steps, ": must not be negative");
  TORCH_CHECK_VALUE(steps <= kWordRange && step >= 0 && step <= kWordRange - steps, "step=", step,
                    " with steps=", steps, ": step must be at least 0 and step + steps at most 2**32");
}

// Checks that a result with these sizes, none of them negative, has fewer than 2**63 elements. `product` is the product
// of the sizes as the error message names it, such as "steps * lanes".
inline void check_n_elements(const char* product, c10::IntArrayRef sizes) {
  bool has_zero = false, overflows = false;
  uint64_t n = 1;
  for (const int64_t size : sizes) {
    has_zero |= size == 0;
    overflows |= c10::mul_overflows(n, static_cast<uint64_t>(size), &n) || n >= uint64_t{1} << 63;
  }
  TORCH_CHECK_VALUE(has_zero || !overflows, product, ": the product of ", sizes, " must be less than 2**63");
}

// Checks `counter`, the value that a tensor adds to `step` (the caller's step number is their sum).
inline void check_counter(int64_t counter, int64_t step, int64_t steps) {
  TORCH_CHECK_VALUE(counter >= 0 && counter <= (int64_t{1} << 32) - steps - step, "step=", counter,
                    " with steps=", steps, ": step must be at least 0 and step + steps at most 2**32");
}

// Checks the arguments of the operator dropout_mask, except the dtype. `stream` is the number of the random stream.
inline void check_dropout_mask(int64_t steps, int64_t lanes, int64_t units, double p, int64_t seed, int64_t stream,
                               int64_t step) {
  constexpr int64_t kWordRange = int64_t{1} << 32;
  check_counters(seed, step, steps);
  TORCH_CHECK_VALUE(lanes >= 0 && lanes < kWordRange, "lanes=", lanes, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(units >= 0 && units < kWordRange, "units=", units, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(stream >= 0 && stream < kWordRange, "stream=", stream, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "p=", p, ": the probability of dropping must be in [0, 1)");
}

}  // namespace grf
