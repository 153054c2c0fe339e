// at::parallel_for on threads made for each call: for ThreadSanitizer, which sees their beginning and end. In front of
// every source of that build (gru4rec_fast/_compile.py) and of no other.
#pragma once

#include <ATen/Config.h>
#undef AT_PARALLEL_OPENMP
#define AT_PARALLEL_OPENMP 0
#define INTRA_OP_PARALLEL

#include <cstdint>

namespace at::internal {
template <typename F>
void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f);
}  // namespace at::internal

#include <ATen/Parallel.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

// As in ATen/ParallelOpenMP.h: the same chunks, the caller being thread 0, and one of the exceptions thrown again.
template <typename F>
void at::internal::invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t wanted = grain_size > 0 ? divup(end - begin, grain_size) : end - begin;
  const int64_t size = divup(end - begin, std::min<int64_t>(get_num_threads(), wanted));
  const int64_t chunks = divup(end - begin, size);
  std::vector<std::exception_ptr> errors(chunks);
  const auto run = [&](int64_t chunk) {
    try {
      const ThreadIdGuard guard(static_cast<int>(chunk));
      f(begin + chunk * size, std::min(end, begin + (chunk + 1) * size));
    } catch (...) {
      errors[chunk] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) others.emplace_back(run, chunk);
  run(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}
