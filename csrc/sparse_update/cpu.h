// Optimizer steps on the rows of a table on the CPU, on raw pointers, for the operators of
// sparse_update/sparse_update.cpp and the fused training step. Specification: gru4rec_fast/ops/sparse_update.py.
//
// The type of the options selects the optimizer; all functions exist for each optimizer, in float and double. No result
// depends on the number of threads. Row indices are not checked.
#pragma once

#include "sparse_update/sparse_update.h"

namespace grf {

// Returns the positions 0 .. n - 1 sorted by index [n], equal indices by position. `buffer_1` and `buffer_2` have n
// elements each; the result is in one of them.
int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2);

// The same, but returns the sorted indices themselves.
int64_t* sort_rows(const int64_t* index, int64_t n, int64_t n_rows, int64_t* buffer_1, int64_t* buffer_2);

// Updates the rows index [n_index] with grad [n_index, width]. Gradients of the same row are first summed, in their
// order. Runs on the threads of at::parallel_for.
template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const int64_t* index, int64_t n_index, const T* grad,
                 const Options<T>& options);

// Updates one row with the sum of first_grad [width] (null: left out) and the rows position[0 .. n) of grad [...,
// width], in this order; at least one term. For callers that compute gradients row by row in their own parallel region.
// `next_row` is prefetched meanwhile; -1: none.
template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first_grad, const T* grad, const int64_t* position,
                int64_t n, const Options<T>& options, int64_t next_row = -1);

// Updates all rows with grad [n_rows, width]. Runs on the threads of at::parallel_for.
template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options);

}  // namespace grf
