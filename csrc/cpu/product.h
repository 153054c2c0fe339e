// Matrix products on raw pointers, whose bits do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace grf {

// Where a matrix stands in memory: element (i, j) at i * row + j * column. One of the two is 1.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, column = 1;

  Matrix transposed() const { return {data, column, row}; }
  Matrix from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

// c [m, n] (c_stride from row to row) = a [m, k] b [k, n], or c += a b; of float or double. Threads as
// at::parallel_for.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add = false);

}  // namespace grf
