// The CUDA kernel for optimizer steps on the rows of a table that have gradients, and the device functions that it
// shares with training_step/cuda.cu. Specification: gru4rec_fast/ops/sparse_update.py.
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

// Returns the sum of N columns of several gradients, in the order of i = begin .. end - 1. grad_columns(i) loads the
// columns of the i-th gradient.
template <typename T, int N, typename GradColumns>
__device__ __forceinline__ Columns<T, N> sum_gradients(int64_t begin, int64_t end, const GradColumns& grad_columns) {
  Columns<T, N> sum = grad_columns(begin);
#pragma unroll 4
  for (int64_t i = begin + 1; i < end; ++i) {
    const Columns<T, N> grad = grad_columns(i);
    for (int j = 0; j < N; ++j) sum.at[j] += grad.at[j];
  }
  return sum;
}

// Updates N columns of a weight and of the optimizer's state. A state pointer is null if the optimizer has no such
// state.
template <typename T, int N, typename Options>
__device__ __forceinline__ void update_columns(const Options& options, const Columns<T, N>& grad, T* weight, T* state_1,
                                               T* state_2) {
  Columns<T, N> w = load_columns<T, N>(weight), s1 = {}, s2 = {};
  if (state_1 != nullptr) s1 = load_columns<T, N>(state_1);
  if (state_2 != nullptr) s2 = load_columns<T, N>(state_2);
  // weight_change also updates s1 and s2.
  for (int j = 0; j < N; ++j) w.at[j] += weight_change(options, grad.at[j], s1.at[j], s2.at[j]);
  if (state_1 != nullptr) store_columns(state_1, s1);
  if (state_2 != nullptr) store_columns(state_2, s2);
  store_columns(weight, w);
}

// Returns pointer + offset, or null for a null pointer.
template <typename T>
__device__ __forceinline__ T* offset_or_null(T* pointer, int64_t offset) {
  return pointer == nullptr ? nullptr : pointer + offset;
}

// Calls visit(row, begin, end, task) for each distinct row in sorted_index [n] and each task in [0, n_tasks). [begin,
// end) is the range of i with sorted_index[i] == row; -1 is skipped.
//
// The threads of the grid loop over n * n_tasks pairs of an i and a task. If i is the first of its range, the thread of
// the pair processes the whole range; otherwise the thread does nothing. So no sum depends on the order of threads, and
// the number of distinct rows need not be known.
template <typename Visit>
__device__ __forceinline__ void for_touched_rows(const int64_t* sorted_index, int64_t n, int64_t n_tasks,
                                                 const Visit& visit) {
  for (int64_t pair = global_thread(); pair < n * n_tasks; pair += all_threads()) {
    const int64_t begin = quotient(pair, n_tasks), row = sorted_index[begin];
    if (row < 0 || (begin > 0 && sorted_index[begin - 1] == row)) continue;
    int64_t end = begin + 1;
    while (end < n && sorted_index[end] == row) ++end;
    visit(row, begin, end, pair - begin * n_tasks);
  }
}

// Sums the gradients of each row that has gradients, and updates the row's weight and state.
//
// Launch: one dimension, any number of blocks of up to kUpdateThreads threads, no shared memory. Threads loop over
// groups of N columns of a row.
//
// Bytes: the kernel reads every gradient, its row and its position (16 bytes for both) once, and reads and writes
// weight and state of each updated row once. For n = 2080 distinct rows of 100 columns, Adagrad with momentum in
// float32, that is 5.9 MB, 1.2 us on an H200 (4.8 TB/s, estimated). Bottleneck: memory bandwidth; at this size, the
// launch itself. A row with very many gradients is slow, since one thread per N columns adds them one after another.
//
// Hazard: an index out of range must stop the kernel before anything is written. sorted_index is increasing, so every
// thread first checks its first and last elements.
template <typename T, int N, template <typename> class Options>
__global__ void __launch_bounds__(kUpdateThreads)
    update_rows_kernel(RowTable<T> table, SortedGradients<T> gradients, Options<T> options) {
  GRF_DEVICE_CHECK(gradients.sorted_index[0] >= -1 && gradients.sorted_index[gradients.n - 1] < table.n_rows,
                   "index: holds a row that is out of range for the table");
  for_touched_rows(gradients.sorted_index, gradients.n, table.width / N,
                   [&](int64_t row, int64_t begin, int64_t end, int64_t task) {
                     const int64_t column = task * N, offset = row * table.width + column;
                     const Columns<T, N> grad = sum_gradients<T, N>(begin, end, [&](int64_t i) {
                       return load_columns<T, N>(gradients.grad + gradients.positions[i] * table.width + column);
                     });
                     update_columns<T, N>(options, grad, table.weight + offset, offset_or_null(table.state_1, offset),
                                          offset_or_null(table.state_2, offset));
                   });
}

}  // namespace grf::cuda
