// Operations on the rows of matrices, parallelized with at::parallel_for. The fused training step and sampled_loss use
// them on the CPU.
#pragma once

#include <cstdint>

namespace grf {

// Copies row index[i] of `table` [rows, width] to row i of out [n, width], or zeros if index[i] is negative. Does not
// check whether an index is too large.
template <typename T>
void gather_rows(const T* table, int64_t width, const int64_t* index, int64_t n, T* out);

// Copies row [width] to each row of out [rows, width].
template <typename T>
void repeat_row(const T* row, int64_t rows, int64_t width, T* out);

// Multiplies values[i] by factors[i], for i < n.
template <typename T>
void multiply_in_place(const T* factors, int64_t n, T* values);

// Adds the rows of a matrix [rows, width] to sums [width], in the order of the rows. Rows are `stride` elements apart.
template <typename T>
void add_column_sums(const T* matrix, int64_t rows, int64_t width, int64_t stride, T* sums);

}  // namespace grf
