// Neighboring columns of a row that are read and written at once.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/simt.cuh"

namespace grf::cuda {

constexpr int kWideBytes = 16;  // the widest access of memory

// Columns of type T that are kWideBytes together.
template <typename T>
constexpr int kWideColumns = kWideBytes / static_cast<int>(sizeof(T));

// N neighboring columns, which are one access of memory.
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

// Calls launch(N, blocks) for a kernel whose threads take N of `numbers` numbers each, or one of `others` other pieces
// of work. N is a constant: kWideColumns where `wide`, else 1.
template <typename T, typename Launch>
void by_columns(bool wide, int64_t numbers, int threads, const Launch& launch, int64_t others = 0) {
  if (numbers + others == 0) return;
  constexpr int kWide = kWideColumns<T>;
  if (wide) {
    launch(std::integral_constant<int, kWide>(), blocks_for(numbers / kWide + others, threads));
  } else {
    launch(std::integral_constant<int, 1>(), blocks_for(numbers + others, threads));
  }
}

}  // namespace grf::cuda
