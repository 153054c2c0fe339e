// Matrix products by AVX512-BF16. Only this file is compiled with that instruction set. Every function of this file
// except has_bf16_products() may be called only if that returns true. A pair is two bfloat16 numbers in 32 bits,
// neighbors along the dimension k that the product sums over.
#include "matrix/product_bf16.h"

#include "common/simd.h"

#if GRF_X86_ISAS
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "common/scratch.h"
#include "matrix/split_among_threads.h"

#define GRF_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(                                                                            \
    __attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif
namespace grf {
namespace {
namespace bf16 {
#include "matrix/product_bf16_kernel.inc"
}  // namespace bf16
}  // namespace
}  // namespace grf
#include "common/end_target.inc"
#undef GRF_VECTOR_BYTES

namespace grf {
namespace {

// Tags of the buffers that Scratch keeps for each thread.
struct PackedAScratch;
struct PackedBScratch;
struct RowsScratch;
struct BlockScratch;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Returns the number of pairs for a row of k numbers, padded to whole vectors.
int64_t padded_pairs(int64_t k) {
  return round_up((k + 1) / 2, bf16::kVectorPairs);
}

// Returns the number of pairs that `pack_pairs` may write for a matrix [m, k].
int64_t packed_size(int64_t m, int64_t k) {
  return round_up(m, bf16::kVectorPairs) * padded_pairs(k);
}

// Converts `a` [m, k] into pairs and returns a view of the pairs. If the rows of `a` are contiguous, the rows of the
// view are contiguous; otherwise the columns.
Matrix<uint32_t> pack_pairs(int64_t m, int64_t k, Matrix<float> a, uint32_t* pairs) {
  if (a.column_stride == 1) {
    const int64_t stride = padded_pairs(k);
    bf16::pack_rows_along_k(m, k, a.data, a.row_stride, pairs, stride);
    return {pairs, stride, 1};
  }
  const int64_t stride = round_up(m, bf16::kVectorPairs);
  bf16::pack_rows_across_k(k, m, a.data, a.column_stride, pairs, stride);
  return {pairs, 1, stride};
}

// Computes the product of `a` and `b` in blocks of rows, for `b` with contiguous rows. Packs `b` once, in panels of 32
// columns (two vectors); the thread that multiplies a block of `a` packs that block. For each block, calls visit(first,
// count, compute_block), which must call compute_block(c, c_stride, add). compute_block writes rows [first, first +
// count) of the product to c, or adds them to c if `add`.
template <typename Visit>
void multiply_row_blocks(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, const Visit& visit) {
  constexpr int64_t kPanelColumns = bf16::kPanelColumns;
  const int64_t pairs = (k + 1) / 2, n_panels = (n + kPanelColumns - 1) / kPanelColumns;
  Scratch<uint32_t, PackedBScratch> packed_b(n_panels * kPanelColumns * pairs);
  uint32_t* panels = packed_b.take(n_panels * kPanelColumns * pairs);
  split_among_threads(n_panels, 1, kPanelColumns * k, [&](int64_t begin, int64_t count) {
    for (int64_t j = begin; j < begin + count; ++j) {
      const int64_t width = std::min(kPanelColumns, n - j * kPanelColumns);
      // If the last panel has at most 16 columns, its second vector stays unset; the product does not read it.
      bf16::pack_rows_across_k(k, width, b.data + j * kPanelColumns, b.row_stride, panels + j * kPanelColumns * pairs,
                               kPanelColumns);
    }
  });
  split_among_threads(m, kBlockRows, n * k, [&](int64_t begin, int64_t size) {
    Scratch<uint32_t, PackedAScratch> packed_a(packed_size(kBlockRows, k));
    uint32_t* packed = packed_a.take(packed_size(kBlockRows, k));
    for (int64_t first = begin; first < begin + size; first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, begin + size - first);
      const Matrix<uint32_t> block = pack_pairs(count, k, a.skip(first, 0), packed);
      visit(first, count, [&](float* c, int64_t c_stride, bool add) {
        bf16::multiply_ab_packed(count, n, k, block.data, block.row_stride, block.column_stride, panels, c, c_stride,
                                 add);
      });
    }
  });
}

}  // namespace

bool has_bf16_products() {
  static const bool supported = simd_level() == SimdLevel::avx512 && __builtin_cpu_supports("avx512bf16");
  return supported;
}

void multiply_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, float* c, int64_t c_stride,
                   bool add) {
  if (b.column_stride == 1 && m > n) {
    multiply_row_blocks(m, n, k, a, b, [&](int64_t first, int64_t, const auto& compute_block) {
      compute_block(c + first * c_stride, c_stride, add);
    });
    return;
  }
  Scratch<uint32_t, PackedAScratch> packed_a(2 * packed_size(m, k));  // for `pairs` and `panels`
  const Matrix<uint32_t> pairs = pack_pairs(m, k, a, packed_a.take(packed_size(m, k)));
  if (b.column_stride == 1) {
    split_among_threads(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
      bf16::multiply_ab(m, count, k, pairs.data, pairs.row_stride, pairs.column_stride, b.data + first, b.row_stride,
                        c + first, c_stride, add);
    });
    return;
  }
  uint32_t* panels = packed_a.take(packed_size(m, k));
  // a^T in panels of pairs, copied from the packed rows of `a`. <float> only chooses the vector length; a pair has the
  // same size as a float.
  bf16::pack_panels<float>(m, (k + 1) / 2, pairs.data, pairs.row_stride, pairs.column_stride, panels);
  split_among_threads(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
    const int64_t stride = padded_pairs(k);
    Scratch<uint32_t, RowsScratch> rows(bf16::kPackedRows * stride);
    bf16::multiply_abt(m, count, k, panels, b.skip(0, first).data, b.column_stride,
                       rows.take(bf16::kPackedRows * stride), stride, c + first, c_stride, add);
  });
}

void multiply_by_blocks_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, OnBlock<float> visit) {
  multiply_row_blocks(m, n, k, a, b, [&](int64_t first, int64_t count, const auto& compute_block) {
    Scratch<float, BlockScratch> block(count * n);
    float* c = block.take(count * n);
    compute_block(c, n, /*add=*/false);
    visit(first, count, c);
  });
}

}  // namespace grf

#endif  // GRF_X86_ISAS
