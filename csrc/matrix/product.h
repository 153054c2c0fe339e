// Matrix products on raw pointers. The results have the same bits for any number of threads.
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <string_view>

#include "matrix/precision.h"

namespace grf {

// A read-only view of a matrix: element (i, j) is data[i * row_stride + j * column_stride]. One of the strides is 1.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride = 1;

  Matrix transposed() const { return {data, column_stride, row_stride}; }
  // Returns a view without the first i rows and the first j columns.
  Matrix skip(int64_t i, int64_t j) const {
    return {data + i * row_stride + j * column_stride, row_stride, column_stride};
  }
};

// Returns the Precision named "full" or "bf16". Raises ValueError for any other name.
Precision precision_named(std::string_view name);

// Computes c [m, n] = a [m, k] b [k, n], or c += a b if `add`, for float or double. Rows of c are c_stride elements
// apart. Runs on the threads of at::parallel_for.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add = false,
              Precision precision = Precision::full);

constexpr int64_t kBlockRows = 48;  // rows of the product in one block of multiply_by_blocks

// The callback of multiply_by_blocks. `block` [count, n] is rows [first, first + count) of the product.
template <typename T>
using OnBlock = c10::function_ref<void(int64_t first, int64_t count, const T* block)>;

// Computes a b as `multiply` does, but each thread stores only one block of the product at a time. Calls `visit` once
// for each block of at most kBlockRows rows, in any order, on the thread that computed the block, while the block is in
// the cache. `visit` must not compute matrix products. Runs on the threads of at::parallel_for. With AVX-512, the
// blocks have the same bits as the result of `multiply`; without it, they are equal up to rounding errors.
template <typename T>
void multiply_by_blocks(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, OnBlock<T> visit,
                        Precision precision = Precision::full);

}  // namespace grf
