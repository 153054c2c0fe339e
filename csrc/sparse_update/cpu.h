// Optimizer steps on rows of a table on the CPU, on raw pointers. Used by the operators of
// sparse_update/sparse_update.cpp and by the fused training step. Specification: gru4rec_fast/ops/sparse_update.py.
//
// The type of the options selects the optimizer. All functions exist for each optimizer in float and double. No result
// depends on the number of threads. The functions do not check row indices.
#pragma once

#include "sparse_update/sparse_update.h"

namespace grf {

// Returns the positions i = 0 .. n - 1 sorted by index[i], which is in [0, n_rows). Positions of equal indices are in
// increasing order.
// `buffer_1` and `buffer_2` have n elements each; the result is in one of them.
int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2);

// Returns the sorted elements of index [n], which are in [0, n_rows). The result is in one of the buffers, which have n
// elements each.
int64_t* sort_rows(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2);

// Updates the rows of the table that are listed in index [n_index]; row i of grad [n_index, width] is the gradient of
// row index[i]. Gradients of the same row are first summed, in their order. Runs on the threads of at::parallel_for.
// Allocates nothing if `memory`, for sort_memory(n_index) elements, is given.
template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const int64_t* index, int64_t n_index, const T* grad,
                 const Options<T>& options, int64_t* memory = nullptr);
constexpr int64_t sort_memory(int64_t n_index) {
  return 3 * n_index + 1;
}

// Updates one row with the sum of first_grad [width], if not null, and the rows positions[0 .. n) of grad [..., width],
// added in this order. At least one gradient must be given. Runs on the calling thread, for callers that compute
// gradients row by row in their own parallel region. Prefetches `next_row`, the row of the next call, unless it is -1.
template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first_grad, const T* grad, const int64_t* positions,
                int64_t n, const Options<T>& options, int64_t next_row = -1);

// Updates all rows of the table with grad [n_rows, width]. Runs on the threads of at::parallel_for.
template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options);

}  // namespace grf
