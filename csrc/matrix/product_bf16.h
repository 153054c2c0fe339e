// Matrix products by the processor's bfloat16 instructions, for matrix/product.cpp. Other files call the functions of
// matrix/product.h. Defined only on x86 (GRF_X86_ISAS).
#pragma once

#include <cstdint>

#include "matrix/product.h"

namespace grf {

// Returns whether the processor has AVX512-BF16 and the selected instruction set (common/simd.h) is AVX-512.
bool has_bf16_products();

// Implement `multiply` and `multiply_by_blocks` with Precision::bf16. Both functions require has_bf16_products();
// multiply_by_blocks_bf16 also requires that the rows of b are contiguous.
void multiply_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, float* c, int64_t c_stride,
                   bool add);
void multiply_by_blocks_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, OnBlock<float> visit);

}  // namespace grf
