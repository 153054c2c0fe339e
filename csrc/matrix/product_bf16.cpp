// Products of bf16 numbers by AVX512-BF16. The one file that is compiled with it: nothing else may hold its
// instructions, since nothing else asks has_bf16_products().
#include "matrix/product_bf16.h"

#include "common/simd.h"

#if GRF_X86_ISAS
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "common/scratch.h"
#include "matrix/product_pieces.h"

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
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef GRF_VECTOR_BYTES

namespace grf {
namespace {

struct LeftScratch;
struct RightScratch;
struct RowsScratch;
struct BlockScratch;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Pairs of all of a [m, k], laid out as a is. `room` is for room_for_pairs(m, k) of them.
int64_t room_for_pairs(int64_t m, int64_t k) {
  return round_up(m, 16) * round_up((k + 1) / 2, 16);
}

Matrix<uint32_t> pack(int64_t m, int64_t k, Matrix<float> a, uint32_t* room) {
  if (a.column == 1) {
    const int64_t stride = round_up((k + 1) / 2, 16);
    bf16::pack_along(m, k, a.data, a.row, room, stride);
    return {room, stride, 1};
  }
  bf16::pack_across(k, m, a.data, a.column, room, round_up(m, 16));
  return {room, 1, round_up(m, 16)};
}

// Products by blocks of a's rows, for b whose rows are contiguous: b is packed once, each block of a by the thread that
// multiplies it. place(first, count, product) calls product(c, c_stride, add) with where the block goes.
template <typename Place>
void multiply_row_blocks(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, const Place& place) {
  constexpr int64_t kPanel = bf16::kPanel;
  const int64_t pairs = (k + 1) / 2, n_panels = (n + kPanel - 1) / kPanel;
  Scratch<uint32_t, RightScratch> right(n_panels * kPanel * pairs);
  uint32_t* panels = right.take(n_panels * kPanel * pairs);
  share_out(n_panels, 1, kPanel * k, [&](int64_t begin, int64_t count) {
    for (int64_t j = begin; j < begin + count; ++j) {
      const int64_t width = std::min(kPanel, n - j * kPanel);
      // The last panel's second vector is not read where it has no columns.
      bf16::pack_across(k, width, b.data + j * kPanel, b.row, panels + j * kPanel * pairs, kPanel);
    }
  });
  share_out(m, kBlockRows, n * k, [&](int64_t begin, int64_t size) {
    Scratch<uint32_t, LeftScratch> left(room_for_pairs(kBlockRows, k));
    uint32_t* room = left.take(room_for_pairs(kBlockRows, k));
    for (int64_t first = begin; first < begin + size; first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, begin + size - first);
      const Matrix<uint32_t> block = pack(count, k, a.from(first, 0), room);
      place(first, count, [&](float* c, int64_t c_stride, bool add) {
        bf16::multiply_packed(count, n, k, block.data, block.row, block.column, panels, c, c_stride, add);
      });
    }
  });
}

}  // namespace

bool has_bf16_products() {
  static const bool has = simd_level() == SimdLevel::avx512 && __builtin_cpu_supports("avx512bf16");
  return has;
}

void multiply_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, float* c, int64_t c_stride,
                   bool add) {
  if (b.column == 1 && m > n) {
    multiply_row_blocks(m, n, k, a, b, [&](int64_t first, int64_t, const auto& product) {
      product(c + first * c_stride, c_stride, add);
    });
    return;
  }
  Scratch<uint32_t, LeftScratch> left(2 * room_for_pairs(m, k));
  const Matrix<uint32_t> pairs = pack(m, k, a, left.take(room_for_pairs(m, k)));
  if (b.column == 1) {
    share_out(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
      bf16::multiply_rows(m, count, k, pairs.data, pairs.row, pairs.column, b.data + first, b.row, c + first, c_stride,
                          add);
    });
    return;
  }
  uint32_t* panels = left.take(room_for_pairs(m, k));
  bf16::pack_panels<float>(m, (k + 1) / 2, pairs.data, pairs.row, pairs.column, panels);
  share_out(n, kColumnUnit, m * k, [&](int64_t first, int64_t count) {
    const int64_t stride = round_up((k + 1) / 2, 16);
    Scratch<uint32_t, RowsScratch> rows(bf16::kRowsAtOnce * stride);
    bf16::multiply_transposed(m, count, k, panels, b.from(0, first).data, b.column,
                              rows.take(bf16::kRowsAtOnce * stride), stride, c + first, c_stride, add);
  });
}

void multiply_by_blocks_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, UseBlock<float> use) {
  multiply_row_blocks(m, n, k, a, b, [&](int64_t first, int64_t count, const auto& product) {
    Scratch<float, BlockScratch> block(count * n);
    float* c = block.take(count * n);
    product(c, n, false);
    use(first, count, c);
  });
}

}  // namespace grf

#endif  // GRF_X86_ISAS
