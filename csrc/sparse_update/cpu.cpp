// Optimizer steps on the touched rows of a table, on the CPU: Adagrad and Adam. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// The positions in `index` are sorted by row with a stable sort, so that the gradients of a row are neighbors and keep
// their order. Then one pass over each touched row sums its gradients in that order and updates it
// (sparse_update/cpu_kernel.inc). Threads split the rows, and the columns of wide rows, but never a sum: the result
// does not depend on their number. The bottleneck is the latency of memory, since rows are scattered.
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

// Columns of one row: the weight, its state (null: not kept), and its gradients. Their sum is `grad` plus the n_more
// rows more_grads + position[i] * stride, in this order.
template <typename T>
struct TouchedRow {
  T *weight, *state_1, *state_2;
  const T *grad, *more_grads;
  int64_t stride, n_more;
  const int64_t* position;

  TouchedRow(const RowTable<T>& table, int64_t offset, const T* grad, const T* more_grads, int64_t n_more,
             const int64_t* position)
      : weight(table.weight + offset),
        state_1(table.state_1 == nullptr ? nullptr : table.state_1 + offset),
        state_2(table.state_2 == nullptr ? nullptr : table.state_2 + offset),
        grad(grad),
        more_grads(more_grads),
        stride(table.width),
        n_more(n_more),
        position(position) {}
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "sparse_update/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

struct SortScratch;

constexpr int64_t kMaxColumns = 4096;  // wider rows are split into chunks

// Updates `n` rows in parallel, in chunks of at most kMaxColumns columns. touched(u, column) returns the u-th row,
// starting at a column.
template <typename T, typename Options, typename Touched>
void update_in_chunks(int64_t n, int64_t width, const Touched& touched, const Options& options) {
  const int64_t per_row = (width + kMaxColumns - 1) / kMaxColumns;
  const auto chunk = [&](int64_t i) { return touched(i / per_row, i % per_row * kMaxColumns); };
  const auto update = GRF_DISPATCH(update_columns<T, Options>);
  const int64_t grain_size = std::max<int64_t>(1, 8192 / std::max<int64_t>(std::min(width, kMaxColumns), 1));
  at::parallel_for(0, n * per_row, grain_size, [&](int64_t begin, int64_t end) {
    TouchedRow<T> row = chunk(begin);
    for (int64_t i = begin; i < end; ++i) {
      const TouchedRow<T> next = chunk(std::min(i + 1, end - 1));
      update(row, next, std::min(kMaxColumns, width - i % per_row * kMaxColumns), options);
      row = next;
    }
  });
}

}  // namespace

// Sorts n values by key(value) in [0, n_keys) with a stable radix sort: counting sorts of up to 11 bits of the key,
// lowest bits first. Returns the buffer that holds the result, `values` or `buffer`.
template <typename Key>
int64_t* radix_sort(int64_t* values, int64_t* buffer, int64_t n, int64_t n_keys, const Key& key) {
  constexpr int kMaxBits = 11;
  const int bits = n_keys > 1 ? 64 - __builtin_clzll(static_cast<uint64_t>(n_keys - 1)) : 0;
  const int passes = (bits + kMaxBits - 1) / kMaxBits, bits_per_pass = passes > 0 ? (bits + passes - 1) / passes : 0;
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
                 const Options<T>& options) {
  if (n_index == 0 || table.width == 0) return;
  Scratch<int64_t, SortScratch> scratch(3 * n_index + 1);
  int64_t *buffer_1 = scratch.take(n_index), *buffer_2 = scratch.take(n_index), *start = scratch.take(n_index + 1);
  const int64_t* order = sort_positions(index, n_index, table.n_rows, buffer_1, buffer_2);
  int64_t n_touched = 0;  // the u-th touched row has the positions order[start[u]] .. order[start[u + 1] - 1]
  for (int64_t i = 0; i < n_index; ++i) {
    if (i == 0 || index[order[i]] != index[order[i - 1]]) start[n_touched++] = i;
  }
  start[n_touched] = n_index;
  const auto touched = [&](int64_t u, int64_t column) {
    const int64_t* position = order + start[u];
    return TouchedRow<T>(table, index[*position] * table.width + column, grad + *position * table.width + column,
                         grad + column, start[u + 1] - start[u] - 1, position + 1);
  };
  update_in_chunks<T>(n_touched, table.width, touched, options);
}

template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first_grad, const T* grad, const int64_t* position,
                int64_t n, const Options<T>& options, int64_t next_row) {
  if (first_grad == nullptr) first_grad = grad + *position++ * table.width, --n;
  const auto touched = [&](int64_t i) { return TouchedRow<T>(table, i * table.width, first_grad, grad, n, position); };
  const auto update = GRF_DISPATCH(update_columns<T, Options<T>>);
  update(touched(row), touched(next_row < 0 ? row : next_row), table.width, options);
}

template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options) {
  const RowTable<T> flat{table.weight, table.state_1, table.state_2, 1, table.n_rows * table.width};
  const auto touched = [&](int64_t, int64_t column) {
    return TouchedRow<T>(flat, column, grad + column, nullptr, 0, nullptr);
  };
  if (flat.width > 0) update_in_chunks<T>(1, flat.width, touched, options);
}

#define GRF_INSTANTIATE(T, Options)                                                                    \
  template void update_rows(const RowTable<T>&, const int64_t*, int64_t, const T*, const Options<T>&); \
  template void update_row(const RowTable<T>&, int64_t, const T*, const T*, const int64_t*, int64_t,   \
                           const Options<T>&, int64_t);                                                \
  template void update_all(const RowTable<T>&, const T*, const Options<T>&);
GRF_INSTANTIATE(float, AdagradOptions)
GRF_INSTANTIATE(double, AdagradOptions)
GRF_INSTANTIATE(float, AdamOptions)
GRF_INSTANTIATE(double, AdamOptions)
#undef GRF_INSTANTIATE

}  // namespace grf
