// Matrix products: by kernels of our own (cpu/product_kernel.inc) where there is AVX-512, by torch's BLAS elsewhere.
//
// Our own ones, because MKL seems to keep its AVX-512 code to Intel's processors, and because at a training step's
// sizes it spends a share of its time on copying operands (docs/performance.md).
#include "cpu/product.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/scratch.h"

#define GRF_KERNEL "cpu/product_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kWork = int64_t{1} << 20;  // multiply-adds worth a thread

struct PanelScratch;

// Calls run(first, count) for shares of `length` rows or columns, `work` multiply-adds each, on all threads.
template <typename Run>
void share_out(int64_t length, int64_t work, const Run& run) {
  constexpr int64_t kUnit = 96;  // a multiple of every tile's rows and columns
  const int64_t grain = std::max<int64_t>(1, kWork / std::max<int64_t>(1, kUnit * work));
  at::parallel_for(0, (length + kUnit - 1) / kUnit, grain, [&](int64_t begin, int64_t end) {
    run(begin * kUnit, std::min(end * kUnit, length) - begin * kUnit);
  });
}

template <typename T>
void multiply_here(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add) {
  if (k == 0 && !add) {
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * c_stride, n, T{0});
  } else if (b.column == 1) {
    const auto run = GRF_DISPATCH(multiply_rows<T>);
    share_out(std::max(m, n), std::min(m, n) * k, [&](int64_t first, int64_t count) {
      if (m > n) {
        run(count, n, k, a.from(first, 0).data, a.row, a.column, b.data, b.row, c + first * c_stride, c_stride, add);
      } else {
        run(m, count, k, a.data, a.row, a.column, b.data + first, b.row, c + first, c_stride, add);
      }
    });
  } else {
    const int64_t lanes = GRF_DISPATCH(panel_width<T>)(), padded = (m + lanes - 1) / lanes * lanes;
    Scratch<T, PanelScratch> scratch(padded * k);
    T* panels = scratch.take(padded * k);
    for (int64_t i = 0; i < padded; ++i) {
      T* to = panels + i / lanes * lanes * k + i % lanes;
      for (int64_t p = 0; p < k; ++p) to[p * lanes] = i < m ? a.from(i, p).data[0] : T{0};
    }
    const auto run = GRF_DISPATCH(multiply_transposed<T>);
    share_out(n, m * k, [&](int64_t first, int64_t count) {
      run(m, count, k, panels, b.from(0, first).data, b.column, c + first, c_stride, add);
    });
  }
}

// BLAS shares a product out among threads by their number, and may then sum in another order. Here the cuts are made by
// shape alone, along the longer side of c, and each piece runs in a parallel region, where BLAS uses one thread. A
// product too small to be cut enters one too.
template <typename T>
void multiply_by_blas(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add) {
  constexpr int64_t kMaxPieces = 16;  // each copies the shorter operand anew
  constexpr int64_t kMultiple = 48;   // of rows or columns: fills the tiles of BLAS
  const auto view = [](const T* data, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
    return at::from_blob(const_cast<T*>(data), {rows, columns}, {row, column}, options);
  };
  const bool by_rows = m > n;
  const int64_t length = by_rows ? m : n;
  int64_t wanted = 1;
  while (2 * wanted <= kMaxPieces && 4 * wanted * kWork / m / n < k) wanted *= 2;
  const int64_t size = ((length + wanted - 1) / wanted + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t pieces = (length + size - 1) / size;
  at::parallel_for(0, std::max<int64_t>(pieces, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < std::min(end, pieces); ++piece) {
      const int64_t first = piece * size, count = std::min(size, length - first);
      const int64_t i = by_rows ? first : 0, j = by_rows ? 0 : first;
      const int64_t rows = by_rows ? count : m, columns = by_rows ? n : count;
      const at::Tensor left = view(a.from(i, 0).data, rows, k, a.row, a.column);
      const at::Tensor right = view(b.from(0, j).data, k, columns, b.row, b.column);
      at::Tensor to = view(c + i * c_stride + j, rows, columns, c_stride, 1);
      if (add) {
        at::cpu::addmm_out(to, to, left, right);
      } else {
        at::cpu::mm_out(to, left, right);
      }
    }
  });
}

}  // namespace

template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add) {
  if (m == 0 || n == 0) return;
  const auto how = simd_level() == SimdLevel::avx512 ? multiply_here<T> : multiply_by_blas<T>;
  how(m, n, k, a, b, c, c_stride, add);
}

template void multiply<float>(int64_t, int64_t, int64_t, Matrix<float>, Matrix<float>, float*, int64_t, bool);
template void multiply<double>(int64_t, int64_t, int64_t, Matrix<double>, Matrix<double>, double*, int64_t, bool);

}  // namespace grf
