// Matrix products on raw pointers, by torch's own BLAS, whose bits do not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <algorithm>
#include <cstdint>

namespace grf {

// Where a matrix stands in memory: element (i, j) at i * row + j * column.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, column = 1;

  Matrix transposed() const { return {data, column, row}; }
  Matrix from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
  at::Tensor view(int64_t rows, int64_t columns) const {
    const auto dtype = c10::CppTypeToScalarType<T>::value;
    return at::from_blob(const_cast<T*>(data), {rows, columns}, {row, column}, at::TensorOptions().dtype(dtype));
  }
};

// c [m, n] (c_stride from row to row) = a [m, k] b [k, n], or c += a b.
//
// BLAS shares a product out among threads by their number, and may then sum in another order. Here the cuts are made by
// shape alone, along the longer side of c, and each piece runs in a parallel region, where BLAS uses one thread. A
// product too small to be cut enters one too.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add = false) {
  constexpr int64_t kWork = int64_t{1} << 21;  // multiply-adds worth a piece
  constexpr int64_t kMaxPieces = 16;           // each packs the shorter operand anew
  constexpr int64_t kMultiple = 48;            // of rows or columns: fills the tiles of BLAS
  if (m == 0 || n == 0) return;
  const bool by_rows = m > n;
  const int64_t length = by_rows ? m : n;
  int64_t wanted = 1;
  while (2 * wanted <= kMaxPieces && 2 * wanted * kWork / m / n < k) wanted *= 2;
  const int64_t size = ((length + wanted - 1) / wanted + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t pieces = (length + size - 1) / size;
  at::parallel_for(0, std::max<int64_t>(pieces, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < std::min(end, pieces); ++piece) {
      const int64_t first = piece * size, count = std::min(size, length - first);
      const int64_t i = by_rows ? first : 0, j = by_rows ? 0 : first;
      const int64_t rows = by_rows ? count : m, columns = by_rows ? n : count;
      const at::Tensor left = a.from(i, 0).view(rows, k), right = b.from(0, j).view(k, columns);
      at::Tensor to = Matrix<T>{c + i * c_stride + j, c_stride}.view(rows, columns);
      if (add) {
        at::cpu::addmm_out(to, to, left, right);
      } else {
        at::cpu::mm_out(to, left, right);
      }
    }
  });
}

}  // namespace grf
