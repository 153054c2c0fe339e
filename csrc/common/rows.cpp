#include "common/rows.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#define GRF_KERNEL "common/rows_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kWork = 16384;  // numbers worth a thread

int64_t rows_per_thread(int64_t width) {
  return std::max<int64_t>(1, kWork / std::max<int64_t>(1, width));
}

}  // namespace

template <typename T>
void gather_rows(const T* table, int64_t width, const int64_t* index, int64_t n, T* to) {
  constexpr int64_t kAhead = 4, kLine = 64 / static_cast<int64_t>(sizeof(T));  // rows come from anywhere in memory
  at::parallel_for(0, n, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end && index[i + kAhead] >= 0) {
        const T* next = table + index[i + kAhead] * width;
        for (int64_t j = 0; j < width; j += kLine) __builtin_prefetch(next + j);
      }
      if (index[i] < 0) {
        std::fill_n(to + i * width, width, T{0});
      } else {
        std::copy_n(table + index[i] * width, width, to + i * width);
      }
    }
  });
}

template <typename T>
void repeat_row(const T* row, int64_t rows, int64_t width, T* to) {
  at::parallel_for(0, rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy_n(row, width, to + i * width);
  });
}

template <typename T>
void multiply_by(const T* factors, int64_t n, T* to) {
  const auto multiply = GRF_DISPATCH(multiply_numbers<T>);
  at::parallel_for(0, n, kWork,
                   [&](int64_t begin, int64_t end) { multiply(to + begin, factors + begin, end - begin); });
}

template <typename T>
void add_column_sums(const T* from, int64_t rows, int64_t width, int64_t stride, T* sums) {
  const auto sum = GRF_DISPATCH(sum_columns<T>);
  at::parallel_for(0, width, rows_per_thread(rows),
                   [&](int64_t begin, int64_t end) { sum(sums + begin, from + begin, rows, end - begin, stride); });
}

#define GRF_INSTANTIATE(T)                                                      \
  template void gather_rows<T>(const T*, int64_t, const int64_t*, int64_t, T*); \
  template void repeat_row<T>(const T*, int64_t, int64_t, T*);                  \
  template void multiply_by<T>(const T*, int64_t, T*);                          \
  template void add_column_sums<T>(const T*, int64_t, int64_t, int64_t, T*);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
