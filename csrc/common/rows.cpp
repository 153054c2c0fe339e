// Operations on the rows of matrices on the CPU (common/rows.h).
#include "common/rows.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#define GRF_KERNEL "common/rows_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kGrainSize = 16384;  // grain size of a loop over elements

// Returns the grain size of a loop over rows or columns of n elements each.
int64_t grain_size(int64_t n) {
  return std::max<int64_t>(1, kGrainSize / std::max<int64_t>(1, n));
}

}  // namespace

template <typename T>
void gather_rows(const T* table, int64_t width, const int64_t* index, int64_t n, T* out) {
  // The rows are scattered in memory. The row that is needed kAhead iterations later is prefetched, cache line by line.
  constexpr int64_t kAhead = 4, kCacheLine = 64 / static_cast<int64_t>(sizeof(T));
  at::parallel_for(0, n, grain_size(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end && index[i + kAhead] >= 0) {
        const T* next = table + index[i + kAhead] * width;
        for (int64_t j = 0; j < width; j += kCacheLine) __builtin_prefetch(next + j);
      }
      if (index[i] < 0) {
        std::fill_n(out + i * width, width, T{0});
      } else {
        std::copy_n(table + index[i] * width, width, out + i * width);
      }
    }
  });
}

template <typename T>
void repeat_row(const T* row, int64_t rows, int64_t width, T* out) {
  at::parallel_for(0, rows, grain_size(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy_n(row, width, out + i * width);
  });
}

template <typename T>
void multiply_in_place(const T* factors, int64_t n, T* values) {
  const auto multiply = GRF_DISPATCH(multiply_elements<T>);
  at::parallel_for(0, n, kGrainSize,
                   [&](int64_t begin, int64_t end) { multiply(values + begin, factors + begin, end - begin); });
}

template <typename T>
void add_column_sums(const T* matrix, int64_t rows, int64_t width, int64_t stride, T* sums) {
  const auto sum = GRF_DISPATCH(sum_columns<T>);
  at::parallel_for(0, width, grain_size(rows),
                   [&](int64_t begin, int64_t end) { sum(sums + begin, matrix + begin, rows, end - begin, stride); });
}

#define GRF_INSTANTIATE(T)                                                      \
  template void gather_rows<T>(const T*, int64_t, const int64_t*, int64_t, T*); \
  template void repeat_row<T>(const T*, int64_t, int64_t, T*);                  \
  template void multiply_in_place<T>(const T*, int64_t, T*);                    \
  template void add_column_sums<T>(const T*, int64_t, int64_t, int64_t, T*);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
