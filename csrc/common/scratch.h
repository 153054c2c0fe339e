// Memory that a kernel keeps between calls: a fresh large buffer costs page faults, 20 to 40 % of a small training
// step.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>

namespace grf {

// Room for `n` numbers of type T, not initialized, aligned to 64 bytes. Each thread keeps one buffer for each Tag, up
// to kKeptBytes, so two Scratches of one Tag must not be alive at once in a thread.
template <typename T, typename Tag>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    static constexpr size_t kKeptBytes = size_t{16} << 20;
    static thread_local c10::DataPtr kept;
    static thread_local size_t kept_bytes = 0;
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    if (bytes > kKeptBytes) {
      own_ = c10::GetCPUAllocator()->allocate(bytes);
      data_ = static_cast<T*>(own_.get());
      return;
    }
    if (bytes > kept_bytes) {
      kept = c10::GetCPUAllocator()->allocate(bytes);
      kept_bytes = bytes;
    }
    data_ = static_cast<T*>(kept.get());
  }

  // The next `n` numbers of the room.
  T* take(int64_t n) {
    T* taken = data_ + used_;
    used_ += n;
    return taken;
  }

 private:
  c10::DataPtr own_;
  T* data_;
  int64_t used_ = 0;
};

// Memory that an object keeps from call to call, and that grows; not initialized, aligned to 64 bytes.
template <typename T>
class Buffer {
 public:
  // Room for `n` numbers; what an earlier call gave is lost where more are wanted than ever before.
  T* room(int64_t n) {
    if (n > size_) {
      data_ = c10::GetCPUAllocator()->allocate(static_cast<size_t>(n) * sizeof(T));
      size_ = n;
    }
    return static_cast<T*>(data_.get());
  }

 private:
  c10::DataPtr data_;
  int64_t size_ = 0;
};

}  // namespace grf
