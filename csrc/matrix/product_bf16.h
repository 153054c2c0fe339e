// Matrix products by the processor's bfloat16 instructions. Only matrix/product.cpp calls them; its header has the
// public functions. Defined only on x86 (GRF_X86_ISAS).
#pragma once

#include <cstdint>

#include "matrix/product.h"

namespace grf {

// Returns whether the processor has AVX512-BF16 and the selected instruction set (common/simd.h) is AVX-512.
bool has_bf16_products();

// Implement `multiply` and `multiply_by_blocks` with Precision::bf16. Require has_bf16_products() and, for
// multiply_by_blocks_bf16, contiguous rows of b.
void multiply_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, float* c, int64_t c_stride,
                   bool add);
void multiply_by_blocks_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, OnBlock<float> visit);

}  // namespace grf
