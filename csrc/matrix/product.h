// Matrix products on raw pointers, whose bits do not depend on the number of threads.
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <string_view>

#include "matrix/precision.h"

namespace grf {

// Where a matrix stands in memory: element (i, j) at i * row + j * column. One of the two is 1.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, column = 1;

  Matrix transposed() const { return {data, column, row}; }
  Matrix from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

// "full" or "bf16"; ValueError names any other.
Precision precision_named(std::string_view name);

// c [m, n] (c_stride from row to row) = a [m, k] b [k, n], or c += a b; of float or double. Threads as
// at::parallel_for.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add = false,
              Precision precision = Precision::full);

constexpr int64_t kBlockRows = 48;

// Takes rows [first, first + count) of a product as block [count, n], contiguous; see multiply_by_blocks.
template <typename T>
using UseBlock = c10::function_ref<void(int64_t first, int64_t count, const T* block)>;

// The same product, never stored: `use` is given at most kBlockRows rows at a time, each block once, in any order, by
// the thread that made it, while it is in that thread's cache. It may not call a product itself. Threads as
// at::parallel_for. The numbers are those of `multiply` where there is AVX-512, elsewhere equal within rounding.
template <typename T>
void multiply_by_blocks(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, UseBlock<T> use,
                        Precision precision = Precision::full);

}  // namespace grf
