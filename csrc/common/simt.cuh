// What every kernel includes: CUDA's device language, and how a kernel is launched. Compiled by nvcc these are CUDA's
// own; compiled by a C++17 compiler, kernels and launchers run under tools/cuda_emulator/ on the processor.
//
//   GRF_SHARED(name, T[n]);           an array (or a number, T) in the block's shared memory
//   GRF_DYNAMIC_SHARED(name, T);      T* const name, to the bytes that the launch asks for
//   GRF_DEVICE_CHECK(condition, "argument: what is wrong with it");  stops the kernel
//   GRF_LAUNCH((kernel<T>), grid, block, shared_bytes, stream, arguments...);  throws where it cannot be launched
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#undef NDEBUG  // checks of what a kernel reads guard its memory
#include <cassert>

#define GRF_SHARED(name, ...)      \
  using name##_type = __VA_ARGS__; \
  __shared__ name##_type name
#define GRF_DYNAMIC_SHARED(name, ...)                                        \
  extern __shared__ __align__(16) unsigned char grf_dynamic_shared_memory[]; \
  auto* const name = reinterpret_cast<__VA_ARGS__*>(grf_dynamic_shared_memory)
#define GRF_DEVICE_CHECK(condition, text) assert((condition) && (text))

namespace grf {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// A block may take more than 48 KB of shared memory only once its kernel has been told so.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* name) {
  if (bytes <= size_t{48} << 10) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
}

}  // namespace grf

#define GRF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)          \
  do {                                                                      \
    auto* const grf_kernel = (kernel);                                      \
    ::grf::allow_shared(grf_kernel, (shared_bytes), #kernel);               \
    grf_kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__); \
    ::grf::check_cuda(cudaGetLastError(), #kernel);                         \
  } while (false)

#else

#include "cuda_emulator/device.h"

#endif

namespace grf {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Blocks of `per_block` threads for `n` threads' worth of work, n >= 1. There may be fewer than that takes: a kernel's
// threads go on from `global_thread()` in strides of `all_threads()`.
inline unsigned blocks_for(int64_t n, int64_t per_block) {
#ifdef __CUDACC__
  constexpr int64_t most = int64_t{1} << 16;  // fills any GPU many times over
#else
  const int64_t most = simt::most_blocks();
#endif
  const int64_t blocks = (n - 1) / per_block + 1;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// Number of this thread in a grid of one dimension, and how many there are.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * static_cast<int64_t>(blockDim.x) + static_cast<int64_t>(threadIdx.x);
}
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * static_cast<int64_t>(blockDim.x);
}

// a / b of numbers that are not negative, by 32-bit division, several times faster, wherever they allow it.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace grf
