// Adagrad and Adam steps on the rows of a table that have gradients, on the CPU. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// A stable sort of the positions in `index` by row makes the gradients of a row neighbors and keeps their order. Then
// one pass over each row that has gradients sums them in that order and updates the row (sparse_update/cpu_kernel.inc).
// Different threads take different rows, or different columns of a wide row. No sum is split among threads, so the
// result does not depend on their number. Bottleneck: the latency of memory, since rows are scattered.
#include "sparse_update/cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>

#include "common/scratch.h"

namespace grf {
namespace {

// Pointers to the columns of one row that has gradients: to its weight, its state (null if the optimizer has none), and
// its gradients. The first gradient is `grad`; the n_more other ones are more_grads + positions[i] * stride.
template <typename T>
struct TouchedRow {
  T *weight, *state_1, *state_2;
  const T *grad, *more_grads;
  int64_t stride, n_more;
  const int64_t* positions;

  TouchedRow(const RowTable<T>& table, int64_t offset, const T* grad, const T* more_grads, int64_t n_more,
             const int64_t* positions)
      : weight(table.weight + offset),
        state_1(table.state_1 == nullptr ? nullptr : table.state_1 + offset),
        state_2(table.state_2 == nullptr ? nullptr : table.state_2 + offset),
        grad(grad),
        more_grads(more_grads),
        stride(table.width),
        n_more(n_more),
        positions(positions) {}
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "sparse_update/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

struct SortScratch;  // tag of the buffers that Scratch keeps for each thread

constexpr int64_t kMaxColumns = 4096;  // wider rows are split into chunks of this many columns

// Updates n_touched rows in parallel, in chunks of at most kMaxColumns columns. touched(i, column) returns the i-th
// row to update, with pointers to its elements from `column` on.
template <typename T, typename Options, typename Touched>
void update_in_chunks(int64_t n_touched, int64_t width, const Touched& touched, const Options& options) {
  const int64_t chunks_per_row = (width + kMaxColumns - 1) / kMaxColumns;
  const auto first_column = [&](int64_t chunk) { return chunk % chunks_per_row * kMaxColumns; };
  const auto pointers = [&](int64_t chunk) { return touched(chunk / chunks_per_row, first_column(chunk)); };
  const auto update = GRF_DISPATCH(update_columns<T, Options>);
  constexpr int64_t kMinElements = 8192;  // per thread; fewer are not worth another thread
  const int64_t grain_size = std::max<int64_t>(1, kMinElements / std::max<int64_t>(std::min(width, kMaxColumns), 1));
  at::parallel_for(0, n_touched * chunks_per_row, grain_size, [&](int64_t begin, int64_t end) {
    TouchedRow<T> row = pointers(begin);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const TouchedRow<T> next = pointers(std::min(chunk + 1, end - 1));
      update(row, next, std::min(kMaxColumns, width - first_column(chunk)), options);
      row = next;
    }
  });
}

}  // namespace

// Sorts n values by key(value), which is in [0, n_keys). This is a stable radix sort: each pass is a counting sort by
// up to 11 bits of the key, from the lowest bits to the highest. Returns the buffer that holds the result, `values` or
// `buffer`.
template <typename Key>
int64_t* radix_sort(int64_t* values, int64_t* buffer, int64_t n, int64_t n_keys, const Key& key) {
  constexpr int kMaxBits = 11;
  const int bits = n_keys > 1 ? 64 - __builtin_clzll(static_cast<uint64_t>(n_keys - 1)) : 0;
  const int n_passes = (bits + kMaxBits - 1) / kMaxBits;
  const int bits_per_pass = n_passes > 0 ? (bits + n_passes - 1) / n_passes : 0;
  int64_t start[(1 << kMaxBits) + 1];
  for (int shift = 0; shift < bits; shift += bits_per_pass) {
    const int64_t digits = int64_t{1} << bits_per_pass;
    const auto digit = [&](int64_t value) { return (key(value) >> shift) & (digits - 1); };
    std::fill_n(start, digits + 1, int64_t{0});
    for (int64_t i = 0; i < n; ++i) ++start[digit(values[i]) + 1];
    std::partial_sum(start, start + digits, start);
    for (int64_t i = 0; i < n; ++i) buffer[start[digit(values[i])]++] = values[i];
    std::swap(values, buffer);
  }
  return values;
}

int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2) {
  std::iota(buffer_1, buffer_1 + n, int64_t{0});
  if (std::is_sorted(index, index + n)) return buffer_1;
  return radix_sort(buffer_1, buffer_2, n, n_rows, [&](int64_t position) { return index[position]; });
}

int64_t* sort_rows(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2) {
  std::copy_n(index, n, buffer_1);
  return radix_sort(buffer_1, buffer_2, n, n_rows, [](int64_t row) { return row; });
}

template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const int64_t* index, int64_t n_index, const T* grad,
                 const Options<T>& options, int64_t* memory) {
  if (n_index == 0 || table.width == 0) return;
  Scratch<int64_t, SortScratch> scratch(memory == nullptr ? sort_memory(n_index) : 0);
  if (memory == nullptr) memory = scratch.take(sort_memory(n_index));
  int64_t *buffer_1 = memory, *buffer_2 = buffer_1 + n_index, *starts = buffer_2 + n_index;
  const int64_t* sorted_positions = sort_positions(index, n_index, table.n_rows, buffer_1, buffer_2);
  int64_t n_touched = 0;  // number of rows with gradients; sorted_positions[starts[i]] is the i-th row's first gradient
  for (int64_t i = 0; i < n_index; ++i) {
    if (i == 0 || index[sorted_positions[i]] != index[sorted_positions[i - 1]]) starts[n_touched++] = i;
  }
  starts[n_touched] = n_index;
  const auto touched = [&](int64_t i, int64_t column) {
    const int64_t* positions = sorted_positions + starts[i];
    const int64_t n_more = starts[i + 1] - starts[i] - 1;
    return TouchedRow<T>(table, index[positions[0]] * table.width + column, grad + positions[0] * table.width + column,
                         grad + column, n_more, positions + 1);
  };
  update_in_chunks<T>(n_touched, table.width, touched, options);
}

template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first_grad, const T* grad, const int64_t* positions,
                int64_t n, const Options<T>& options, int64_t next_row) {
  if (first_grad == nullptr) first_grad = grad + *positions++ * table.width, --n;
  // The gradients of next_row are not known yet. As next_row is only prefetched, `touched` uses the gradients of `row`.
  const auto touched = [&](int64_t i) { return TouchedRow<T>(table, i * table.width, first_grad, grad, n, positions); };
  const auto update = GRF_DISPATCH(update_columns<T, Options<T>>);
  update(touched(row), touched(next_row < 0 ? row : next_row), table.width, options);
}

template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options) {
  // The table as a single row, whose chunks are updated in parallel.
  const RowTable<T> flat{table.weight, table.state_1, table.state_2, /*n_rows=*/1, table.n_rows * table.width};
  const auto touched = [&](int64_t, int64_t column) {
    return TouchedRow<T>(flat, column, grad + column, /*more_grads=*/nullptr, /*n_more=*/0, /*positions=*/nullptr);
  };
  if (flat.width > 0) update_in_chunks<T>(/*n_touched=*/1, flat.width, touched, options);
}

#define GRF_INSTANTIATE(T, Options)                                                                              \
  template void update_rows(const RowTable<T>&, const int64_t*, int64_t, const T*, const Options<T>&, int64_t*); \
  template void update_row(const RowTable<T>&, int64_t, const T*, const T*, const int64_t*, int64_t,             \
                           const Options<T>&, int64_t);                                                          \
  template void update_all(const RowTable<T>&, const T*, const Options<T>&);
GRF_INSTANTIATE(float, AdagradOptions)
GRF_INSTANTIATE(double, AdagradOptions)
GRF_INSTANTIATE(float, AdamOptions)
GRF_INSTANTIATE(double, AdamOptions)
#undef GRF_INSTANTIATE

}  // namespace grf
