// Bisection, on the CPU and in CUDA kernels.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace grf {

// The first i of [0, n) for which `before(i)` is false, n where there is none; before it all are true.
template <typename Before>
GRF_HOST_DEVICE int64_t partition_point(int64_t n, const Before& before) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (before(middle)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace grf
