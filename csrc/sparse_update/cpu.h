// Optimizer steps on the rows of a table, on raw pointers: what the operators in sparse_update/sparse_update.cpp and
// anything else that updates parameters on the CPU share. Specification: gru4rec_fast/ops/sparse_update.py.
//
// A rule is the type of its options; every function below is there for each rule, in float and double. None of the
// results depends on the number of threads. Rows in `index` are not checked.
#pragma once

#include "sparse_update/sparse_update.h"

namespace grf {

// Puts into order [n] the positions in `index` sorted by row, equal rows by position. `other` has room for n numbers
// too; the one of both in which they end is returned.
int64_t* sort_positions(const int64_t* index, int64_t n, int64_t n_rows, int64_t* order, int64_t* other);

// The same of the rows themselves.
int64_t* sort_rows(const int64_t* index, int64_t n, int64_t n_rows, int64_t* sorted, int64_t* other);

// The rows named by index [n_index], with grad [n_index, width]; gradients of one row are summed in the order in which
// they come. Threads as at::parallel_for.
template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const int64_t* index, int64_t n_index, const T* grad,
                 const Options<T>& options);

// One row, whose gradient is first [width] (null: left out) and, behind it, the rows position[0 .. n) of grad
// [..., width], summed in this order; at least one of them. For callers that make gradients row by row, in parallel
// regions of their own. `next_row` is called into the cache meanwhile; -1: none.
template <typename T, template <typename> class Options>
void update_row(const RowTable<T>& table, int64_t row, const T* first, const T* grad, const int64_t* position,
                int64_t n, const Options<T>& options, int64_t next_row = -1);

// All rows, with grad [n_rows, width]. Threads as at::parallel_for.
template <typename T, template <typename> class Options>
void update_all(const RowTable<T>& table, const T* grad, const Options<T>& options);

}  // namespace grf
