// Allocates large tensors on the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace grf {

// Returns at::empty(shape, options). For a block of 32 MiB or more, malloc of glibc gets new pages from Linux in every
// call, and the page faults take longer than a pass over the values. So this asks Linux for pages of 2 MiB, which Linux
// may refuse.
inline at::Tensor empty_in_huge_pages(at::IntArrayRef shape, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(shape, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kMinBytes = uintptr_t{32} << 20;
  if (tensor.is_cpu() && tensor.nbytes() >= kMinBytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()), end = begin + tensor.nbytes();
    const uintptr_t first_page = (begin + page - 1) / page * page;
    madvise(reinterpret_cast<void*>(first_page), end - first_page, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace grf
