// Optimizer steps on the touched rows of a table. Specification: gru4rec_fast/ops/sparse_update.py.
#pragma once

#include "common/columns.cuh"
#include "common/simt.cuh"
#include "sparse_update/sparse_update.h"

namespace grf::cuda {

constexpr int kUpdateThreads = 256;

__device__ __forceinline__ float root(float x) {
  return sqrtf(x);
}
__device__ __forceinline__ double root(double x) {
  return sqrt(x);
}
template <typename T>
__device__ __forceinline__ T over_root(T x, T y) {
  return x / root(y);
}
#define GRF_RULE __device__ __forceinline__
#include "sparse_update/update_rules.inc"

// The gradient of a row in N columns: those of the places [begin, end) summed in their order; `columns_of(place)` says
// where those of a place begin.
template <typename T, int N, typename ColumnsOf>
__device__ __forceinline__ Columns<T, N> summed(int64_t begin, int64_t end, const ColumnsOf& columns_of) {
  Columns<T, N> sum = columns_at<T, N>(columns_of(begin));
#pragma unroll 4
  for (int64_t i = begin + 1; i < end; ++i) {
    const Columns<T, N> more = columns_at<T, N>(columns_of(i));
    for (int j = 0; j < N; ++j) sum.at[j] += more.at[j];
  }
  return sum;
}

// Moves N columns of a weight by their gradient, with the state that is kept of them; null where there is none.
template <typename T, int N, typename Options>
__device__ __forceinline__ void move_columns(const Options& options, const Columns<T, N>& grad, T* weight, T* first,
                                             T* second) {
  Columns<T, N> w = columns_at<T, N>(weight), one = {}, two = {};
  if (first != nullptr) one = columns_at<T, N>(first);
  if (second != nullptr) two = columns_at<T, N>(second);
  for (int j = 0; j < N; ++j) w.at[j] += change(options, grad.at[j], one.at[j], two.at[j]);
  if (first != nullptr) put_columns(first, one);
  if (second != nullptr) put_columns(second, two);
  put_columns(weight, w);
}

template <typename T>
__device__ __forceinline__ T* at_or_null(T* numbers, int64_t i) {
  return numbers == nullptr ? nullptr : numbers + i;
}

// Calls visit(row, begin, end, part) for `parts` parts of each row that rows [n], rising, names: its places are
// [begin, end). Of a place, `parts` threads look whether the one before it names the same row, and have then nothing to
// do: the first one's threads take all of a row, so that the result does not depend on who is faster, and nobody needs
// to know how many rows there are. -1 names none.
template <typename Visit>
__device__ __forceinline__ void for_touched_rows(const int64_t* rows, int64_t n, int64_t parts, const Visit& visit) {
  for (int64_t i = global_thread(); i < n * parts; i += all_threads()) {
    const int64_t begin = quotient(i, parts), row = rows[begin];
    if (row < 0 || (begin > 0 && rows[begin - 1] == row)) continue;
    int64_t end = begin + 1;
    while (end < n && rows[end] == row) ++end;
    visit(row, begin, end, i - begin * parts);
  }
}

// Updates the rows, once each.
//
// Launch: one dimension, any number of blocks of any size. A thread takes N columns of a row in strides of the grid.
// Counted bytes: every gradient read once, weight and kept state of a touched row read and written once, 16 for each
// place. A row with very many gradients is summed by as many threads as it has columns, one gradient after another.
//
// `rows` rises, so its two ends tell every thread whether all of it is in range, before anything is written.
template <typename T, int N, template <typename> class Options>
__global__ void __launch_bounds__(kUpdateThreads) update_rows_kernel(TouchedRows<T> touched, Options<T> options) {
  const RowTable<T>& table = touched.table;
  GRF_DEVICE_CHECK(touched.rows[0] >= -1 && touched.rows[touched.n - 1] < table.n_rows,
                   "index: out of range, it names a row that the table does not have");
  for_touched_rows(
      touched.rows, touched.n, table.width / N, [&](int64_t row, int64_t begin, int64_t end, int64_t part) {
        const int64_t column = part * N, at = row * table.width + column;
        const Columns<T, N> grad = summed<T, N>(
            begin, end, [&](int64_t place) { return touched.grad + touched.positions[place] * table.width + column; });
        move_columns<T, N>(options, grad, table.weight + at, at_or_null(table.first, at), at_or_null(table.second, at));
      });
}

}  // namespace grf::cuda
