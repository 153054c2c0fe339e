// Binary search, on the CPU and in CUDA kernels.
#pragma once

#include <cstdint>

#include "common/philox.h"  // GRF_HOST_DEVICE

namespace grf {

// Returns the smallest i in [0, n) for which predicate(i) is false, or n if predicate(i) is true for all i. The
// predicate must be false for all larger i as well.
template <typename Predicate>
GRF_HOST_DEVICE int64_t partition_point(int64_t n, const Predicate& predicate) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (predicate(middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace grf
