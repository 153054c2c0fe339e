// Small passes over rows of numbers that a training step needs between its products.
#pragma once

#include <cstdint>

namespace grf {

// to [n, width] = the rows of `table` named by index [n]; zeros where an index is negative. Indices are not checked.
template <typename T>
void gather_rows(const T* table, int64_t width, const int64_t* index, int64_t n, T* to);

// Each of the rows of to [rows, width] = row [width].
template <typename T>
void repeat_row(const T* row, int64_t rows, int64_t width, T* to);

// to [n] *= factors [n].
template <typename T>
void multiply_by(const T* factors, int64_t n, T* to);

// sums [width] += the rows of from [rows, width], which stand `stride` numbers apart; in the order of the rows.
template <typename T>
void add_column_sums(const T* from, int64_t rows, int64_t width, int64_t stride, T* sums);

}  // namespace grf
