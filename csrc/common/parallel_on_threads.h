// Replaces at::parallel_for by a version that creates its threads for each call. ThreadSanitizer sees such threads
// start and join; it cannot follow OpenMP's threads. The ThreadSanitizer build (gru4rec_fast/_compile.py) includes this
// file before every source; no other build uses it.
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

// Does the same as the function in ATen/ParallelOpenMP.h: it uses the same chunks, runs chunk 0 on the calling thread
// and rethrows one of the exceptions.
template <typename F>
void at::internal::invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t max_chunks = grain_size > 0 ? divup(end - begin, grain_size) : end - begin;
  const int64_t size = divup(end - begin, std::min<int64_t>(get_num_threads(), max_chunks));
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
  std::vector<std::thread> threads;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) threads.emplace_back(run, chunk);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}
