// Large tensors on the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace grf {

// Returns at::empty(shape, options). glibc maps a block of more than 32 MiB anew for every call, and its page faults
// take longer than a pass over its values. So this asks Linux for pages of 2 MiB there, which it may refuse.
inline at::Tensor empty_in_huge_pages(at::IntArrayRef shape, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(shape, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kMinBytes = uintptr_t{32} << 20, kPage = 1 << 12;
  if (tensor.is_cpu() && tensor.nbytes() >= kMinBytes) {
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
    const auto end = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes();
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace grf
