// Matrix products. With AVX-512, the kernels of matrix/product_kernel.inc compute them; without it, torch's BLAS does.
// An exception is a few rows times a matrix with contiguous columns, as in a step of a GRU with one lane:
// `multiply_row` computes them one by one, because a tile would be empty but for these rows, and a call of BLAS takes
// longer than the product.
//
// There are two reasons for these kernels. MKL, the BLAS of torch's wheels, seems to use AVX-512 only on Intel's
// processors. And at the sizes of a training step, MKL spends a notable part of its time on copying operands
// (docs/performance_notes.md).
#include "matrix/product.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "common/operator.h"
#include "common/scratch.h"
#include "matrix/product_bf16.h"
#include "matrix/split_among_threads.h"

// Compiles the kernels once for each instruction set; GRF_DISPATCH chooses the copy for this processor.
#define GRF_KERNEL "matrix/product_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

// Tags of the buffers that Scratch keeps for each thread.
struct PanelScratch;
struct BlockScratch;
struct RoundedScratch;

constexpr int64_t kFewRows = 3;  // a product of at most this many rows computes them one by one

// Implements `multiply` with the kernels of product_kernel.inc, which compute tiles of c. The threads get ranges of
// rows or columns of c.
template <typename T>
void multiply_by_tiles(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add) {
  if (k == 0 && !add) {
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * c_stride, n, T{0});
  } else if (b.column_stride == 1 && m > n) {
    split_among_threads(m, kRowUnit, n * k, [&](int64_t first, int64_t count) {
      const Matrix<T> rows = a.skip(first, 0);
      GRF_DISPATCH(multiply_ab<T>)
      (count, n, k, rows.data, rows.row_stride, rows.column_stride, b.data, b.row_stride, c + first * c_stride,
       c_stride, add);
    });
  } else if (b.column_stride == 1) {
    split_among_threads(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
      GRF_DISPATCH(multiply_ab<T>)
      (m, count, k, a.data, a.row_stride, a.column_stride, b.data + first, b.row_stride, c + first, c_stride, add);
    });
  } else {
    // `b` has contiguous columns. a^T is copied into panels, each a few vectors of columns wide (product_kernel.inc).
    // The number of columns is padded to whole vectors.
    const int64_t alignment = GRF_DISPATCH(panel_alignment<T>)();
    const int64_t padded_m = (m + alignment - 1) / alignment * alignment;
    Scratch<T, PanelScratch> scratch(padded_m * k);
    T* panels = scratch.take(padded_m * k);
    GRF_DISPATCH(pack_panels<T, T>)(m, k, a.data, a.row_stride, a.column_stride, panels);
    split_among_threads(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
      GRF_DISPATCH(multiply_abt<T>)
      (m, count, k, panels, b.skip(0, first).data, b.column_stride, c + first, c_stride, add);
    });
  }
}

// BLAS splits a product by the number of threads, and the order of its sums may depend on that number. To get the same
// bits with any number of threads, this function splits the product into slices along the longer dimension of c. The
// number of slices depends only on the shape. Every slice, even if there is only one, runs inside a parallel region,
// where BLAS uses one thread.
template <typename T>
void multiply_by_blas(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add) {
  constexpr int64_t kMaxSlices = 8;   // not more, because BLAS copies the smaller operand once per slice
  constexpr int64_t kSliceUnit = 48;  // a slice has a multiple of 48 rows or columns, which fills the tiles of BLAS
  const auto view = [](const T* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
    return at::from_blob(const_cast<T*>(data), {rows, columns}, {row_stride, column_stride}, options);
  };
  const bool by_rows = m > n;
  const int64_t length = by_rows ? m : n;
  int64_t max_slices = 1;  // doubled while a slice has more than 4 * kGrainSize multiply-adds
  while (2 * max_slices <= kMaxSlices && 4 * max_slices * kGrainSize / m / n < k) max_slices *= 2;
  const int64_t size = ((length + max_slices - 1) / max_slices + kSliceUnit - 1) / kSliceUnit * kSliceUnit;
  const int64_t n_slices = (length + size - 1) / size;
  // parallel_for runs a range of one element outside a parallel region, so the range has at least two elements.
  at::parallel_for(0, std::max<int64_t>(n_slices, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < std::min(end, n_slices); ++slice) {
      const int64_t first = slice * size, count = std::min(size, length - first);
      const int64_t i = by_rows ? first : 0, j = by_rows ? 0 : first;
      const int64_t rows = by_rows ? count : m, columns = by_rows ? n : count;
      const at::Tensor a_slice = view(a.skip(i, 0).data, rows, k, a.row_stride, a.column_stride);
      const at::Tensor b_slice = view(b.skip(0, j).data, k, columns, b.row_stride, b.column_stride);
      at::Tensor c_slice = view(c + i * c_stride + j, rows, columns, c_stride, /*column_stride=*/1);
      if (add) {
        at::cpu::addmm_out(c_slice, c_slice, a_slice, b_slice);
      } else {
        at::cpu::mm_out(c_slice, a_slice, b_slice);
      }
    }
  });
}

// Copies of the operands a and b, rounded to bfloat16 and stored as floats. A copy has contiguous rows or columns, as
// its operand has.
class RoundedOperands {
 public:
  RoundedOperands(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b)
      : scratch_(m * k + k * n), a(round(m, k, a)), b(round(k, n, b)) {}

 private:
  Matrix<float> round(int64_t rows, int64_t columns, Matrix<float> matrix) {
    if (matrix.column_stride != 1) return round(columns, rows, matrix.transposed()).transposed();
    float* rounded = scratch_.take(rows * columns);
    for (int64_t i = 0; i < rows; ++i) {
      GRF_DISPATCH(round_to_bf16)(columns, matrix.data + i * matrix.row_stride, rounded + i * columns);
    }
    return {rounded, columns};
  }

  Scratch<float, RoundedScratch> scratch_;

 public:
  const Matrix<float> a, b;
};

}  // namespace

Precision precision_named(std::string_view name) {
  if (name == "full") return Precision::full;
  TORCH_CHECK_VALUE(name == "bf16", "precision=", name, ": choose full or bf16");
  return Precision::bf16;
}

namespace {

// Returns true if a product of m rows computes them one by one.
template <typename T>
bool computes_single_rows(int64_t m, Matrix<T> a, Matrix<T> b) {
  return m <= kFewRows && a.column_stride == 1 && b.row_stride == 1 && b.column_stride != 1;
}

// Implements `multiply` for m rows of c, one by one or together.
template <typename T>
void multiply_rows(bool one_by_one, int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride,
                   bool add, Precision precision) {
  if constexpr (std::is_same_v<T, float>) {
    if (precision == Precision::bf16 && k > 0) {
#if GRF_X86_ISAS
      if (has_bf16_products()) return multiply_bf16(m, n, k, a, b, c, c_stride, add);
#endif
      const RoundedOperands rounded(m, n, k, a, b);
      return multiply_rows(one_by_one, m, n, k, rounded.a, rounded.b, c, c_stride, add, Precision::full);
    }
  }
  if (one_by_one) {
    split_among_threads(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
      for (int64_t i = 0; i < m; ++i) {
        GRF_DISPATCH(multiply_row<T>)
        (count, k, a.skip(i, 0).data, b.skip(0, first).data, b.column_stride, c + i * c_stride + first, add);
      }
    });
    return;
  }
  const auto implementation = simd_level() == SimdLevel::avx512 ? multiply_by_tiles<T> : multiply_by_blas<T>;
  implementation(m, n, k, a, b, c, c_stride, add);
}

}  // namespace

template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c, int64_t c_stride, bool add,
              Precision precision) {
  if (m == 0 || n == 0) return;
  multiply_rows(computes_single_rows(m, a, b), m, n, k, a, b, c, c_stride, add, precision);
}

template <typename T>
void multiply_by_blocks(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, OnBlock<T> visit,
                        Precision precision) {
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<T, float>) {
    if (precision == Precision::bf16 && k > 0) {
#if GRF_X86_ISAS
      if (has_bf16_products() && b.column_stride == 1) return multiply_by_blocks_bf16(m, n, k, a, b, visit);
#endif
    }
  }
  split_among_threads(m, kBlockRows, n * k, [&](int64_t begin, int64_t size) {
    Scratch<T, BlockScratch> scratch(kBlockRows * n);
    T* block = scratch.take(kBlockRows * n);
    for (int64_t first = begin; first < begin + size; first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, begin + size - first);
      multiply_rows(computes_single_rows(m, a, b), count, n, k, a.skip(first, 0), b, block, n, /*add=*/false,
                    precision);
      visit(first, count, block);
    }
  });
}

#define GRF_INSTANTIATE(T)                                                                               \
  template void multiply(int64_t, int64_t, int64_t, Matrix<T>, Matrix<T>, T*, int64_t, bool, Precision); \
  template void multiply_by_blocks(int64_t, int64_t, int64_t, Matrix<T>, Matrix<T>, OnBlock<T>, Precision);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

namespace {

using at::Tensor;

// Returns a view of a tensor argument.
template <typename T>
Matrix<T> matrix(const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 2 && (tensor.stride(0) == 1 || tensor.stride(1) == 1), name, " has shape ",
                    tensor.sizes(), " and strides ", tensor.strides(),
                    ": must be a matrix with a stride of 1, in rows or in columns");
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1)};
}

// The private operator `product`, with which the tests call the functions of this file.
Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& add_to, std::string_view precision,
               bool by_blocks) {
  const int64_t m = a.size(0), k = a.size(1), n = b.size(1);
  TORCH_CHECK_VALUE(b.size(0) == k && b.scalar_type() == a.scalar_type(), "b must be ", a.scalar_type(), " [", k,
                    ", N], not ", b.scalar_type(), " ", b.sizes());
  TORCH_CHECK_VALUE(!add_to.has_value() || !by_blocks, "add_to must be None with by_blocks=True");
  const Tensor c = add_to.has_value() ? contiguous(*add_to, "add_to", {m, n}, a.scalar_type()).clone()
                                      : at::empty({m, n}, a.options());
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "product", [&] {
    const auto a_view = matrix<scalar_t>(a, "a"), b_view = matrix<scalar_t>(b, "b");
    scalar_t* c_data = c.mutable_data_ptr<scalar_t>();
    if (by_blocks) {
      const auto copy_block = [&](int64_t first, int64_t count, const scalar_t* block) {
        std::copy_n(block, count * n, c_data + first * n);
      };
      multiply_by_blocks<scalar_t>(m, n, k, a_view, b_view, copy_block, precision_named(precision));
    } else {
      multiply(m, n, k, a_view, b_view, c_data, n, add_to.has_value(), precision_named(precision));
    }
  });
  return c;
}

TORCH_LIBRARY_IMPL(gru4rec_fast_private, CPU, m) {
  m.impl("product", &product);
}

}  // namespace
}  // namespace grf
