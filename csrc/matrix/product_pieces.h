// How products are cut among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace grf {

constexpr int64_t kWork = int64_t{1} << 20;  // multiply-adds worth a thread

constexpr int64_t kRowUnit = 12,
                  kColumnUnit = 32;  // what is dealt out: whole tiles, few enough numbers for equal shares

// Calls run(first, count) for shares of `length` rows or columns, `work` multiply-adds each, on all threads. Shares
// begin at multiples of `unit`.
template <typename Run>
void share_out(int64_t length, int64_t unit, int64_t work, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kWork / std::max<int64_t>(1, unit * work));
  at::parallel_for(0, (length + unit - 1) / unit, grain,
                   [&](int64_t begin, int64_t end) { run(begin * unit, std::min(end * unit, length) - begin * unit); });
}

}  // namespace grf
