// Optimizer steps on the touched rows of a table. Specification: gru4rec_fast/reference/sparse_update.py.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/simt.cuh"
#include "cuda/sparse_update.h"

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
#include "common/update_rules.inc"

// The gradient of a row in `columns` columns from `column` on: those that the places [begin, end) have, summed in the
// order of their positions.
template <typename T, int N>
__device__ __forceinline__ Columns<T, N> summed(const TouchedRows<T>& touched, int64_t begin, int64_t end,
                                                int64_t column) {
  const T* grad = touched.grad + column;
  Columns<T, N> sum = columns_at<T, N>(grad + touched.positions[begin] * touched.width);
#pragma unroll 4
  for (int64_t i = begin + 1; i < end; ++i) {
    const Columns<T, N> more = columns_at<T, N>(grad + touched.positions[i] * touched.width);
    for (int j = 0; j < N; ++j) sum.at[j] += more.at[j];
  }
  return sum;
}

// Updates the rows, once each.
//
// Launch: one dimension, any number of blocks of any size. A thread takes N columns of a place in `rows` (in strides of
// the grid), and has nothing to do where the place before it names the same row: the first one's threads sum all of a
// row's gradients, in order, so that the result does not depend on who is faster, and nobody needs to know how many
// rows there are. Counted bytes: every gradient read once, weight and kept state of a touched row read and written
// once, 16 for each place. A row with very many gradients is summed by as many threads as it has columns, one gradient
// after another.
//
// `rows` rises, so its two ends tell every thread whether all of it is in range, before anything is written.
template <typename T, int N, template <typename> class Options>
__global__ void __launch_bounds__(kUpdateThreads) update_rows_kernel(TouchedRows<T> touched, Options<T> options) {
  GRF_DEVICE_CHECK(touched.rows[0] >= -1 && touched.rows[touched.n - 1] < touched.n_rows,
                   "index: out of range, it names a row that the table does not have");
  const int64_t per_row = touched.width / N, total = touched.n * per_row;
  for (int64_t i = global_thread(); i < total; i += all_threads()) {
    const int64_t begin = quotient(i, per_row), row = touched.rows[begin];
    if (row < 0 || (begin > 0 && touched.rows[begin - 1] == row)) continue;
    int64_t end = begin + 1;
    while (end < touched.n && touched.rows[end] == row) ++end;
    const int64_t column = (i - begin * per_row) * N, at = row * touched.width + column;
    const Columns<T, N> grad = summed<T, N>(touched, begin, end, column);
    Columns<T, N> weight = columns_at<T, N>(touched.weight + at), first = {}, second = {};
    if (touched.first != nullptr) first = columns_at<T, N>(touched.first + at);
    if (touched.second != nullptr) second = columns_at<T, N>(touched.second + at);
    for (int j = 0; j < N; ++j) weight.at[j] += change(options, grad.at[j], first.at[j], second.at[j]);
    if (touched.first != nullptr) put_columns(touched.first + at, first);
    if (touched.second != nullptr) put_columns(touched.second + at, second);
    put_columns(touched.weight + at, weight);
  }
}

}  // namespace grf::cuda
