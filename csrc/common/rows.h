// Operations on the rows of matrices, parallelized with at::parallel_for. A CPU training step uses them between its
// matrix products.
#pragma once

#include <cstdint>

namespace grf {

// out [n, width] = the rows of `table` at index [n]; zeros where an index is negative. Indices are not checked.
template <typename T>
void gather_rows(const T* table, int64_t width, const int64_t* index, int64_t n, T* out);

// Copies row [width] to each row of out [rows, width].
template <typename T>
void repeat_row(const T* row, int64_t rows, int64_t width, T* out);

// values [n] *= factors [n].
template <typename T>
void multiply_in_place(const T* factors, int64_t n, T* values);

// Adds the rows of a matrix [rows, width] to sums [width], in their order. Rows are `stride` elements apart.
template <typename T>
void add_column_sums(const T* matrix, int64_t rows, int64_t width, int64_t stride, T* sums);

}  // namespace grf
