// Vectorized access to neighboring columns of a row: up to 16 bytes in one load or store.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kWideBytes = 16;  // the largest load or store of one thread

// The number of columns of type T in kWideBytes.
template <typename T>
constexpr int kWideColumns = kWideBytes / static_cast<int>(sizeof(T));

// The elements of N neighboring columns of a row, which are loaded and stored in one instruction.
template <typename T, int N>
struct alignas(N * sizeof(T)) Columns {
  T at[N];
};

template <typename T, int N>
__device__ __forceinline__ Columns<T, N> load_columns(const T* first) {
  return *reinterpret_cast<const Columns<T, N>*>(first);
}
template <typename T, int N>
__device__ __forceinline__ void store_columns(T* first, const Columns<T, N>& columns) {
  *reinterpret_cast<Columns<T, N>*>(first) = columns;
}

// Returns whether an address is a multiple of `bytes`. Null is a multiple of every number.
inline bool is_aligned(const void* memory, size_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}

// Returns whether kernels may load kWideColumns columns in one instruction from contiguous matrices of `width` columns.
// A matrix may be null.
template <typename T>
bool is_wide(int64_t width, std::initializer_list<const T*> matrices) {
  if (width % kWideColumns<T> != 0) return false;
  for (const T* matrix : matrices) {
    if (!is_aligned(matrix, kWideBytes)) return false;
  }
  return true;
}

// Calls launch(N, blocks), which launches a kernel on n_elements / N tasks of N neighboring elements each and on
// `extra_tasks` further tasks. N is a compile-time constant: kWideColumns if `wide`, else 1. With `threads` threads per
// block, `blocks` gives each task a thread.
template <typename T, typename LaunchKernel>
void launch_columns(bool wide, int64_t n_elements, int threads, const LaunchKernel& launch, int64_t extra_tasks = 0) {
  if (n_elements + extra_tasks == 0) return;
  constexpr int kWide = kWideColumns<T>;
  if (wide) {
    launch(std::integral_constant<int, kWide>(), blocks_for(n_elements / kWide + extra_tasks, threads));
  } else {
    launch(std::integral_constant<int, 1>(), blocks_for(n_elements + extra_tasks, threads));
  }
}

}  // namespace grf::cuda
