// The functions, types and variables of CUDA's device language that the kernels use, for a C++17 compiler. Only
// common/simt.cuh includes this file.
//
// All of them behave as the CUDA C++ Programming Guide describes. Undefined behavior of threads and shared memory is
// reported as an error. If a kernel needs a name that is missing here, add it. See "The emulation" in
// docs/architecture.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda_emulator/interface.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)  // cuda_emulator/__init__.py reads the bounds from the sources

#define threadIdx (::grf::simt::thread_index())
#define blockIdx (::grf::simt::block_index())
#define blockDim (::grf::simt::block_extent())
#define gridDim (::grf::simt::grid_extent())
constexpr int warpSize = 32;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
  return {x, y};
}
inline int2 make_int2(int x, int y) {
  return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// Barriers and fences. The default argument is the line of the call, which identifies the barrier.
inline void __syncthreads(int line = __builtin_LINE()) {
  ::grf::simt::block_barrier(::grf::simt::Barrier::plain, 0, line);
}
inline int __syncthreads_or(int value, int line = __builtin_LINE()) {
  return ::grf::simt::block_barrier(::grf::simt::Barrier::any, value, line);
}
inline int __syncthreads_and(int value, int line = __builtin_LINE()) {
  return ::grf::simt::block_barrier(::grf::simt::Barrier::all, value, line);
}
inline int __syncthreads_count(int value, int line = __builtin_LINE()) {
  return ::grf::simt::block_barrier(::grf::simt::Barrier::count, value, line);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, int line = __builtin_LINE()) {
  ::grf::simt::warp_operation(::grf::simt::WarpOperation::sync, mask, 0, 0, 32, line);
}
inline void __threadfence() {
  ::grf::simt::fence();
}
inline void __threadfence_block() {}  // does nothing: within a block, only barriers order accesses for the race check

namespace grf {
namespace simt {

template <typename T>
T shuffle(WarpOperation kind, unsigned mask, T value, int argument, int width, int line) {
  static_assert(std::is_arithmetic<T>::value, "warp shuffles take numbers, not structs");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(kind, mask, bits, argument, width, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt
}  // namespace grf

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  return ::grf::simt::shuffle(::grf::simt::WarpOperation::index, mask, value, source, width, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return ::grf::simt::shuffle(::grf::simt::WarpOperation::up, mask, value, static_cast<int>(delta), width, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return ::grf::simt::shuffle(::grf::simt::WarpOperation::down, mask, value, static_cast<int>(delta), width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, int line = __builtin_LINE()) {
  return ::grf::simt::shuffle(::grf::simt::WarpOperation::exclusive_or, mask, value, lane_mask, width, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<unsigned>(
      ::grf::simt::warp_operation(::grf::simt::WarpOperation::ballot, mask, predicate != 0, 0, 32, line));
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, !predicate, line) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<unsigned>(::grf::simt::warp_operation(::grf::simt::WarpOperation::match, mask, bits, 0, 32, line));
}

// Atomic operations, only with overloads that CUDA has, so that nvcc accepts every call that compiles here.
// `expression` is the new value, from the values `old` and `value`.
#define GRF_ATOMIC(name, type, expression)                         \
  inline type name(type* address, type value) {                    \
    const ::grf::simt::AtomicAccess access(address, sizeof(type)); \
    type old, updated;                                             \
    ::grf::simt::atomic_read(&old, address, sizeof(type));         \
    updated = static_cast<type>(expression);                       \
    ::grf::simt::atomic_write(address, &updated, sizeof(type));    \
    return old;                                                    \
  }
#define GRF_ATOMIC_INTEGERS(name, expression) \
  GRF_ATOMIC(name, int, expression)           \
  GRF_ATOMIC(name, unsigned, expression)      \
  GRF_ATOMIC(name, unsigned long long, expression)
GRF_ATOMIC(atomicAdd, float, old + value)
GRF_ATOMIC(atomicAdd, double, old + value)
GRF_ATOMIC_INTEGERS(atomicAdd, old + value)
GRF_ATOMIC(atomicSub, int, old - value)
GRF_ATOMIC(atomicSub, unsigned, old - value)
GRF_ATOMIC(atomicExch, float, value)
GRF_ATOMIC_INTEGERS(atomicExch, value)
GRF_ATOMIC_INTEGERS(atomicMin, value < old ? value : old)
GRF_ATOMIC_INTEGERS(atomicMax, value > old ? value : old)
GRF_ATOMIC(atomicMin, long long, value < old ? value : old)
GRF_ATOMIC(atomicMax, long long, value > old ? value : old)
GRF_ATOMIC_INTEGERS(atomicAnd, old& value)
GRF_ATOMIC_INTEGERS(atomicOr, old | value)
GRF_ATOMIC_INTEGERS(atomicXor, old ^ value)
#undef GRF_ATOMIC
#undef GRF_ATOMIC_INTEGERS

#define GRF_ATOMIC_CAS(type)                                                       \
  inline type atomicCAS(type* address, type expected, type value) {                \
    const ::grf::simt::AtomicAccess access(address, sizeof(type));                 \
    type old;                                                                      \
    ::grf::simt::atomic_read(&old, address, sizeof(type));                         \
    if (old == expected) ::grf::simt::atomic_write(address, &value, sizeof(type)); \
    return old;                                                                    \
  }
GRF_ATOMIC_CAS(int)
GRF_ATOMIC_CAS(unsigned)
GRF_ATOMIC_CAS(unsigned long long)
#undef GRF_ATOMIC_CAS

// Functions of the CUDA runtime that launchers call. They set and return the limits of shared memory, and never fail.
// The static shared memory of a kernel is known only when the kernel has run, so sharedSizeBytes is the largest
// possible.
enum cudaError_t { cudaSuccess };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int maxDynamicSharedSizeBytes;
};
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "";
}
inline cudaError_t cudaGetDevice(int*) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* bytes, int, int) {
  *bytes = static_cast<int>(::grf::simt::shared_limit());
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  const size_t max_dynamic = ::grf::simt::max_dynamic_shared_bytes(reinterpret_cast<const void*>(kernel));
  *attributes = {size_t{48} << 10, static_cast<int>(max_dynamic)};
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), int, int bytes) {
  ::grf::simt::set_max_dynamic_shared_bytes(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}

// Arithmetic
using std::exp;
using std::expm1;
using std::fma;
using std::isinf;
using std::isnan;
using std::log;
using std::log1p;
using std::tanh;
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline unsigned __float_as_uint(float x) {
  return static_cast<unsigned>(__float_as_int(x));
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __uint_as_float(unsigned bits) {
  return __int_as_float(static_cast<int>(bits));
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// Shared memory. Every block starts with new memory, filled with a byte pattern. `tag` identifies the declaration.
#define GRF_SHARED(name, ...)                                                                    \
  auto& name = []() -> auto& {                                                                   \
    using Array = __VA_ARGS__;                                                                   \
    static char tag;                                                                             \
    return *static_cast<Array*>(::grf::simt::shared_array(&tag, sizeof(Array), alignof(Array))); \
  }()
#define GRF_DYNAMIC_SHARED(name, ...) auto* const name = static_cast<__VA_ARGS__*>(::grf::simt::dynamic_shared())

#define GRF_DEVICE_CHECK(condition, text)              \
  do {                                                 \
    if (!(condition)) ::grf::simt::check_failed(text); \
  } while (false)

namespace grf {
namespace simt {

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments&&... arguments) {
  const auto body = [kernel, values = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
    std::apply(kernel, values);
  };
  using Body = decltype(body);
  run(
      {name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, sizeof(body)},
      [](const void* closure) { (*static_cast<Body*>(closure))(); }, &body);
}

}  // namespace simt
}  // namespace grf

#define GRF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
  do {                                                                                      \
    (void)(stream);                                                                         \
    ::grf::prepare_launch((kernel), (shared_bytes), #kernel);                               \
    ::grf::simt::launch(#kernel, (kernel), (grid), (block), (shared_bytes), ##__VA_ARGS__); \
  } while (false)
