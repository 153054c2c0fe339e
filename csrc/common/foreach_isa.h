// Compiles the file named by GRF_KERNEL once per instruction set: into grf::baseline, grf::avx2 and grf::avx512.
// Include at file scope, after every header that the kernel file needs; common/simd.h has an example.
//
// There is no include guard: a source file includes this header once for each of its kernel files. The unnamed
// namespace makes each copy local to its object file. Otherwise the linker could replace the baseline copy of an inline
// function by the AVX-512 copy, which crashes on older processors. Inside the kernel file, GRF_VECTOR_BYTES is the
// width of a vector register in bytes. GRF stands for gru4rec_fast.
#include "common/simd.h"

#ifndef GRF_KERNEL
#error "define GRF_KERNEL as the path of the kernel file (relative to csrc/) before including common/foreach_isa.h"
#endif

#define GRF_VECTOR_BYTES 16
namespace grf {
namespace {
namespace baseline {
#include GRF_KERNEL
}  // namespace baseline
}  // namespace
}  // namespace grf
#undef GRF_VECTOR_BYTES

#if GRF_X86_ISAS

#define GRF_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
namespace grf {
namespace {
namespace avx2 {
#include GRF_KERNEL
}  // namespace avx2
}  // namespace
}  // namespace grf
#include "common/end_target.inc"
#undef GRF_VECTOR_BYTES

#define GRF_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace grf {
namespace {
namespace avx512 {
#include GRF_KERNEL
}  // namespace avx512
}  // namespace
}  // namespace grf
#include "common/end_target.inc"
#undef GRF_VECTOR_BYTES

#endif  // GRF_X86_ISAS

#undef GRF_KERNEL
