// Neighbouring columns of a row that are read and written at once.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kWideBytes = 16;  // the widest access of memory

// Columns of type T that are kWideBytes together.
template <typename T>
constexpr int kWideColumns = kWideBytes / static_cast<int>(sizeof(T));

// N neighbouring columns, which are one access of memory.
template <typename T, int N>
struct alignas(N * sizeof(T)) Columns {
  T at[N];
};

template <typename T, int N>
__device__ __forceinline__ Columns<T, N> columns_at(const T* first) {
  return *reinterpret_cast<const Columns<T, N>*>(first);
}
template <typename T, int N>
__device__ __forceinline__ void put_columns(T* first, const Columns<T, N>& columns) {
  *reinterpret_cast<Columns<T, N>*>(first) = columns;
}

// Whether memory (null, too) may be accessed `bytes` at once.
inline bool is_aligned(const void* memory, size_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}

// Whether kWideColumns may be accessed at once in matrices of `width` columns.
template <typename T>
bool is_wide(int64_t width, std::initializer_list<const T*> matrices) {
  if (width % kWideColumns<T> != 0) return false;
  for (const T* matrix : matrices) {
    if (!is_aligned(matrix, kWideBytes)) return false;
  }
  return true;
}

}  // namespace grf::cuda
