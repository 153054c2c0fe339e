// Optimizer steps on the touched rows of a table, on the CPU: Adagrad and Adam. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// The positions in `index` are sorted by row, stably, so that a row's gradients stand together in the order in which
// they came and are summed in that order; then one pass over each touched row (sparse_update/cpu_kernel.inc). Threads
// share out the rows, and the columns of wide ones, so the result does not depend on their number.
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

// Columns of one row: where the parameter and its state lie (null: not kept), and its gradients: `grad`, and behind it
// those in `more`, summed in the order of `position`.
template <typename T>
struct TouchedRow {
  T *weight, *first, *second;
  const T *grad, *more;  // more: of position 0; position p is p * stride behind
  int64_t stride, n_more;
  const int64_t* position;

  TouchedRow(const RowTable<T>& table, int64_t at, const T* grad, const T* more, int64_t n_more,
             const int64_t* position)
      : weight(table.weight + at),
        first(table.first == nullptr ? nullptr : table.first + at),
        second(table.second == nullptr ? nullptr : table.second + at),
        grad(grad),
        more(more),
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

constexpr int64_t kColumns = 4096;  // of a row, at most, in one piece of work

// Calls update on the pieces of `n` rows, from one to the next; touched(u, column) is the u-th row from a column on.
template <typename T, typename Options, typename Touched>
void update_pieces(int64_t n, int64_t width, const Touched& touched, const Options& options) {
  const int64_t per_row = (width + kColumns - 1) / kColumns;
  const auto piece = [&](int64_t number) { return touched(number / per_row, number % per_row * kColumns); };
  const auto update = GRF_DISPATCH(update_columns<T, Options>);
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(std::min(width, kColumns), 1));
  at::parallel_for(0, n * per_row, grain, [&](int64_t begin, int64_t end) {
    TouchedRow<T> row = piece(begin);
    for (int64_t number = begin; number < end; ++number) {
      const TouchedRow<T> next = piece(std::min(number + 1, end - 1));
      update(row, next, std::min(kColumns, width - number % per_row * kColumns), options);
      row = next;
    }
  });
}

}  // namespace

// Sorts the n numbers in `from` by their keys in [0, n_keys), stably: a counting sort of up to 11 bits of the key at a
// time, lowest first. Returns which of `from` and `other` they ended in.
template <typename Key>
int64_t* counting_sort(int64_t* from, int64_t* other, int64_t n, int64_t n_keys, const Key& key) {
  constexpr int kMostBits = 11;
  const int bits = n_keys > 1 ? 64 - __builtin_clzll(static_cast<uint64_t>(n_keys - 1)) : 0;
  const int passes = (bits + kMostBits - 1) / kMostBits, per_pass = passes > 0 ? (bits + passes - 1) / passes : 0;
  int64_t start[(1 << kMostBits) + 1];
  for (int shift = 0; shift < bits; shift += per_pass) {
    const int64_t digits = int64_t{1} << per_pass;
    const auto digit = [&](int64_t number) { return (key(number) >> shift) & (digits - 1); };
    std::fill_n(start, digits + 1, int64_t{0});
    for (int64_t i = 0; i < n; ++i) ++start[digit(from[i]) + 1];
    std::partial_sum(start, start + digits, start);
    for (int64_t i = 0; i < n; ++i) other[start[digit(from[i])]++] = from[i];
    std::swap(from, other);
  }
  return from;
}

int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* order, int64_t* other) {
  std::iota(order, order + n, int64_t{0});
  if (std::is_sorted(index, index + n)) return order;
  return counting_sort(order, other, n, n_rows, [&](int64_t position) { return index[position]; });
}

int64_t* sort_rows(const int64_t* index, int64_t n, int64_t n_rows, int64_t* sorted, int64_t* other) {
  std::copy_n(index, n, sorted);
  return counting_sort(sorted, other, n, n_rows, [](int64_t row) { return row; });
}

template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const int64_t* index, int64_t n_index, const T* grad,
                 const Options<T>& options) {
  if (n_index == 0 || table.width == 0) return;
  Scratch<int64_t, SortScratch> scratch(3 * n_index + 1);
  int64_t *first = scratch.take(n_index), *second = scratch.take(n_index), *start = scratch.take(n_index + 1);
  const int64_t* order = sort_positions(index, n_index, table.n_rows, first, second);
  int64_t n_touched = 0;  // start[u] is where the u-th touched row begins in `order`
  for (int64_t i = 0; i < n_index; ++i) {
    if (i == 0 || index[order[i]] != index[order[i - 1]]) start[n_touched++] = i;
  }
  start[n_touched] = n_index;
  const auto touched = [&](int64_t u, int64_t column) {
    const int64_t* position = order + start[u];
    return TouchedRow<T>(table, index[*position] * table.width + column, grad + *position * table.width + column,
                         grad + column, start[u + 1] - start[u] - 1, position + 1);
  };
  update_pieces<T>(n_touched, table.width, touched, options);
}

template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first, const T* grad, const int64_t* position,
                int64_t n, const Options<T>& options, int64_t next_row) {
  if (first == nullptr) first = grad + *position++ * table.width, --n;
  const auto touched = [&](int64_t i) { return TouchedRow<T>(table, i * table.width, first, grad, n, position); };
  const auto update = GRF_DISPATCH(update_columns<T, Options<T>>);
  update(touched(row), touched(next_row < 0 ? row : next_row), table.width, options);
}

template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options) {
  const RowTable<T> flat{table.weight, table.first, table.second, 1, table.n_rows * table.width};
  const auto touched = [&](int64_t, int64_t column) {
    return TouchedRow<T>(flat, column, grad + column, nullptr, 0, nullptr);
  };
  if (flat.width > 0) update_pieces<T>(1, flat.width, touched, options);
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
