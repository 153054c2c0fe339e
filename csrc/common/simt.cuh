// CUDA's device language and macros that launch kernels, for every kernel file. With nvcc the language is CUDA's own. A
// C++17 compiler takes it from tools/cuda_emulator, which runs the kernels on the CPU.
//
//   GRF_SHARED(name, T[n]);           declares an array in the block's shared memory; GRF_SHARED(name, T) one variable
//   GRF_DYNAMIC_SHARED(name, T);      declares T* name, a pointer to the launch's `shared_bytes` of shared memory
//   GRF_DEVICE_CHECK(condition, "argument: what is wrong with it");  stops the kernel if the condition is false
//   GRF_LAUNCH((kernel<T>), grid, block, shared_bytes, stream, arguments...);  throws if the launch fails
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef __CUDACC__

#include <cuda_runtime.h>
#undef NDEBUG  // assert() checks indices before kernels read or write memory, so it stays on in release builds
#include <cassert>

#define GRF_SHARED(name, ...)      \
  using name##_type = __VA_ARGS__; \
  __shared__ name##_type name
#define GRF_DYNAMIC_SHARED(name, ...)                                        \
  extern __shared__ __align__(16) unsigned char grf_dynamic_shared_memory[]; \
  auto* const name = reinterpret_cast<__VA_ARGS__*>(grf_dynamic_shared_memory)
#define GRF_DEVICE_CHECK(condition, text) assert((condition) && (text))
#define GRF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)          \
  do {                                                                      \
    auto* const grf_kernel = (kernel);                                      \
    ::grf::prepare_launch(grf_kernel, (shared_bytes), #kernel);             \
    grf_kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__); \
    ::grf::check_cuda(cudaGetLastError(), #kernel);                         \
  } while (false)

#else

#include "cuda_emulator/device.h"

#endif

namespace grf {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, so that the next launch does not report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Checks the types of a kernel's parameters. Raises the kernel's limit of shared memory so that a launch can have
// `dynamic_bytes`: by default, CUDA limits static and dynamic shared memory together to 48 KB.
template <typename... Parameters>
void prepare_launch(void (*kernel)(Parameters...), size_t dynamic_bytes, const char* name) {
  static_assert((std::is_trivially_copyable<Parameters>::value && ...), "a launch copies its arguments as bytes");
  static_assert((... + (sizeof(Parameters) + alignof(Parameters) - 1)) <= 4096, "CUDA allows 4 KB of arguments");
  if (dynamic_bytes == 0) return;
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), name);
  if (attributes.sharedSizeBytes + dynamic_bytes <= size_t{48} << 10) return;
  // Never lowers the limit, which another thread may have raised for its launch.
  const int bytes = std::max(static_cast<int>(dynamic_bytes), attributes.maxDynamicSharedSizeBytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
}

constexpr unsigned kAllLanes = 0xFFFFFFFFu;  // the mask of all 32 threads of a warp, for warp shuffles and votes

// Returns the number of blocks that gives each of `n` >= 1 tasks a thread. The number is limited, so kernels use a
// grid-stride loop: a thread starts at task global_thread() and advances by all_threads().
inline unsigned blocks_for(int64_t n, int64_t threads_per_block) {
#ifdef __CUDACC__
  constexpr int64_t max_blocks = int64_t{1} << 16;  // far more than any GPU runs at once
#else
  const int64_t max_blocks = simt::max_grid_blocks();
#endif
  const int64_t blocks = (n - 1) / threads_per_block + 1;
  return static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks);
}

// Returns the index of this thread in a one-dimensional grid.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * static_cast<int64_t>(blockDim.x) + static_cast<int64_t>(threadIdx.x);
}
// Returns the number of threads in a one-dimensional grid.
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * static_cast<int64_t>(blockDim.x);
}

// Returns the number of the first of `steps` steps, as a word of a Philox counter. The number is `step`, plus the value
// of the step counter `counter` unless that is null.
__device__ __forceinline__ uint32_t first_step_word(uint32_t step, const int64_t* counter, int64_t steps = 1) {
  if (counter == nullptr) return step;
  GRF_DEVICE_CHECK(*counter >= 0 && *counter <= (int64_t{1} << 32) - steps - step,
                   "step must be at least 0 and step + steps at most 2**32");
  return step + static_cast<uint32_t>(*counter);
}

// Returns a / b for non-negative integers. If a and b fit in 32 bits, the division is a 32-bit one, which is several
// times faster.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace grf
