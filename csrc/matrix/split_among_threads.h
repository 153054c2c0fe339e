// Splits the rows or columns of a matrix product among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace grf {

constexpr int64_t kGrainSize = int64_t{1} << 20;  // the smallest number of multiply-adds for which a thread is used

// The `unit` of split_among_threads for rows and for columns: whole tiles, but small enough for an even split.
constexpr int64_t kRowUnit = 12, kColumnUnit = 32;

// Splits `length` rows or columns among the threads and calls run(first, count) for each range. A row or column takes
// `work` multiply-adds. Ranges start at multiples of `unit`.
template <typename Run>
void split_among_threads(int64_t length, int64_t unit, int64_t work, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrainSize / std::max<int64_t>(1, unit * work));
  at::parallel_for(0, (length + unit - 1) / unit, grain,
                   [&](int64_t begin, int64_t end) { run(begin * unit, std::min(end * unit, length) - begin * unit); });
}

}  // namespace grf
