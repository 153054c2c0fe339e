// The CUDA kernel for optimizer steps on the touched rows of a table, and the device functions that it shares with
// training_step/cuda.cu. Specification: gru4rec_fast/ops/sparse_update.py.
#pragma once

#include "common/columns.cuh"
#include "common/simt.cuh"
#include "sparse_update/sparse_update.h"

namespace grf::cuda {

constexpr int kUpdateThreads = 256;

__device__ __forceinline__ float square_root(float x) {
  return sqrtf(x);
}
__device__ __forceinline__ double square_root(double x) {
  return sqrt(x);
}
template <typename T>
__device__ __forceinline__ T divide_by_root(T x, T y) {
  return x / square_root(y);
}
#define GRF_RULE __device__ __forceinline__
#include "sparse_update/update_rules.inc"

// Returns the sum of N columns of several gradients, in the order of i = begin .. end - 1. grad_columns(i) returns a
// pointer to the columns of the i-th gradient.
template <typename T, int N, typename GradColumns>
__device__ __forceinline__ Columns<T, N> sum_gradients(int64_t begin, int64_t end, const GradColumns& grad_columns) {
  Columns<T, N> sum = columns_at<T, N>(grad_columns(begin));
#pragma unroll 4
  for (int64_t i = begin + 1; i < end; ++i) {
    const Columns<T, N> grad = columns_at<T, N>(grad_columns(i));
    for (int j = 0; j < N; ++j) sum.at[j] += grad.at[j];
  }
  return sum;
}

// Updates N columns of a weight and of its state, which is null if it is not kept.
template <typename T, int N, typename Options>
__device__ __forceinline__ void update_columns(const Options& options, const Columns<T, N>& grad, T* weight, T* state_1,
                                               T* state_2) {
  Columns<T, N> w = columns_at<T, N>(weight), s1 = {}, s2 = {};
  if (state_1 != nullptr) s1 = columns_at<T, N>(state_1);
  if (state_2 != nullptr) s2 = columns_at<T, N>(state_2);
  for (int j = 0; j < N; ++j) w.at[j] += weight_change(options, grad.at[j], s1.at[j], s2.at[j]);
  if (state_1 != nullptr) put_columns(state_1, s1);
  if (state_2 != nullptr) put_columns(state_2, s2);
  put_columns(weight, w);
}

template <typename T>
__device__ __forceinline__ T* offset_or_null(T* pointer, int64_t offset) {
  return pointer == nullptr ? nullptr : pointer + offset;
}

// Calls visit(row, begin, end, task) for `tasks` tasks of each distinct row in rows [n], which are increasing.
// [begin, end) is the range of i with rows[i] == row; rows of -1 are skipped.
//
// The grid loops over n * tasks pairs of an i and a task. If i is the first of its range, the pair's thread processes
// the whole range, else it does nothing. So no sum depends on the order of threads, and the number of distinct rows is
// not needed.
template <typename Visit>
__device__ __forceinline__ void for_touched_rows(const int64_t* rows, int64_t n, int64_t tasks, const Visit& visit) {
  for (int64_t i = global_thread(); i < n * tasks; i += all_threads()) {
    const int64_t begin = quotient(i, tasks), row = rows[begin];
    if (row < 0 || (begin > 0 && rows[begin - 1] == row)) continue;
    int64_t end = begin + 1;
    while (end < n && rows[end] == row) ++end;
    visit(row, begin, end, i - begin * tasks);
  }
}

// Sums the gradients of each touched row and updates the row's weight and state.
//
// Launch: one dimension, any number of blocks of up to kUpdateThreads threads, no shared memory. A thread takes N
// columns of a row, in strides of the grid.
//
// It reads every gradient and its row and position (16 bytes) once, and reads and writes weight and state of a touched
// row once. For n = 2080 distinct rows of 100 columns, Adagrad with momentum in float32, that is 5.9 MB, 1.2 us on an
// H200 (4.8 TB/s, estimated). The bottleneck is memory, at this size the launch. A row with very many gradients is
// slow: its threads, one per N columns, add them one after another.
//
// Hazard: an index out of range must stop the kernel before anything is written. `rows` is increasing, so every thread
// checks its two ends first.
template <typename T, int N, template <typename> class Options>
__global__ void __launch_bounds__(kUpdateThreads) update_rows_kernel(TouchedRows<T> touched, Options<T> options) {
  const RowTable<T>& table = touched.table;
  GRF_DEVICE_CHECK(touched.rows[0] >= -1 && touched.rows[touched.n - 1] < table.n_rows,
                   "index: holds a row that is out of range for the table");
  for_touched_rows(
      touched.rows, touched.n, table.width / N, [&](int64_t row, int64_t begin, int64_t end, int64_t task) {
        const int64_t column = task * N, offset = row * table.width + column;
        const Columns<T, N> grad = sum_gradients<T, N>(
            begin, end, [&](int64_t i) { return touched.grad + touched.positions[i] * table.width + column; });
        update_columns<T, N>(options, grad, table.weight + offset, offset_or_null(table.state_1, offset),
                             offset_or_null(table.state_2, offset));
      });
}

}  // namespace grf::cuda
