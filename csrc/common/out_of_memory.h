// Recognizes errors of allocations on the CPU.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>
#include <new>

namespace grf {

// Returns whether an allocation by torch's CPU allocator, or by `new`, has failed. torch throws a general c10::Error,
// so only its message tells.
inline bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr &&
         std::strstr(torch_error->what_without_backtrace(), "can't allocate memory") != nullptr;
}

}  // namespace grf
