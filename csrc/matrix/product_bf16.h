// Products of bf16 numbers by the processor's own instructions; for matrix/product.cpp, which has the interface. On x86
// alone (GRF_X86_ISAS).
#pragma once

#include <cstdint>

#include "matrix/product.h"

namespace grf {

// Whether this processor has them (AVX512-BF16), and the running instruction set (common/simd.h) is AVX-512.
bool has_bf16_products();

// multiply and multiply_by_blocks with Precision::bf16, where has_bf16_products().
void multiply_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, float* c, int64_t c_stride,
                   bool add);
void multiply_by_blocks_bf16(int64_t m, int64_t n, int64_t k, Matrix<float> a, Matrix<float> b, UseBlock<float> use);

}  // namespace grf
