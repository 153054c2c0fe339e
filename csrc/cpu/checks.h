// Checks of scalar arguments that several operators share. The message names the argument.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>

namespace grf {

// The key is 64 bits of which the sign bit stays clear; a counter word has 32 bits.
inline void check_counters(int64_t seed, int64_t step, int64_t steps) {
  constexpr int64_t kWordRange = int64_t{1} << 32;
  TORCH_CHECK_VALUE(seed >= 0, "seed=", seed, ": must be in [0, 2**63)");
  TORCH_CHECK_VALUE(steps >= 0, "steps=", steps, ": must not be negative");
  TORCH_CHECK_VALUE(steps <= kWordRange && step >= 0 && step <= kWordRange - steps, "step=", step,
                    " with steps=", steps, ": step must not be negative, step + steps not exceed 2**32");
}

}  // namespace grf
