// Memory that CPU kernels reuse between calls. If large buffers were allocated in each call, their page faults would
// take 20 to 40 % of a small training step.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <vector>

namespace grf {

// Uninitialized memory for `n` elements of type T, aligned to 64 bytes. Each thread keeps one buffer per T and Tag for
// later Scratch objects; a Tag is any type. Buffers of more than kMaxCachedBytes are not kept. A thread must not have
// two Scratch objects with the same T and Tag at the same time, because they would share the buffer.
template <typename T, typename Tag>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    static constexpr size_t kMaxCachedBytes = size_t{16} << 20;
    static thread_local c10::DataPtr cached;
    static thread_local size_t cached_bytes = 0;
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (bytes > kMaxCachedBytes) {
      uncached_ = c10::GetCPUAllocator()->allocate(bytes);
      data_ = static_cast<T*>(uncached_.get());
      return;
    }
    if (bytes > cached_bytes) {
      cached_bytes = 0, cached.clear();  // first, so that the old and the new memory do not exist at the same time
      cached = c10::GetCPUAllocator()->allocate(bytes);
      cached_bytes = bytes;
    }
    data_ = static_cast<T*>(cached.get());
  }

  // Returns the next `n` elements that no earlier call returned.
  T* take(int64_t n) {
    T* start = data_ + used_;
    used_ += n;
    return start;
  }

 private:
  c10::DataPtr uncached_;  // the memory, if it is too large for the thread's buffer
  T* data_;
  int64_t used_ = 0;
};

// Uninitialized memory, aligned to 64 bytes, that an object owns for its lifetime. It grows on demand.
template <typename T>
class Buffer {
 public:
  T* data() const { return static_cast<T*>(data_.get()); }

  // Returns memory for at least `n` elements. The earlier content is lost when the buffer grows. If the allocation
  // fails, the buffer is empty.
  T* reserve(int64_t n) {
    if (n > size_) {
      size_ = 0, data_.clear();  // first, so that the old and the new memory do not exist at the same time
      data_ = c10::GetCPUAllocator()->allocate(static_cast<size_t>(n) * sizeof(T));
      size_ = n;
    }
    return data();
  }

 private:
  c10::DataPtr data_;
  int64_t size_ = 0;
};

// An allocator for std::vector that uses torch's CPU allocator, so that memory profilers see the memory.
template <typename T>
struct TorchAllocator {
  using value_type = T;
  TorchAllocator() = default;
  template <typename U>
  TorchAllocator(const TorchAllocator<U>& /*other*/) {}
  T* allocate(size_t n) { return static_cast<T*>(c10::GetCPUAllocator()->raw_allocate(n * sizeof(T))); }
  void deallocate(T* data, size_t /*n*/) { c10::GetCPUAllocator()->raw_deallocate(data); }
  bool operator==(const TorchAllocator& /*other*/) const { return true; }
};

template <typename T>
using Vector = std::vector<T, TorchAllocator<T>>;

// Frees the memory of Buffers and Vectors, or of objects that consist of these.
template <typename... Memory>
void release(Memory&... memory) {
  ((memory = Memory()), ...);
}

}  // namespace grf
