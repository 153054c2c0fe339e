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

// MKL is torch's BLAS on x86. The weak symbol is null in a torch without MKL.
extern "C" int MKL_Set_Num_Threads_Local(int n_threads) __attribute__((weak));

#include <ATen/Parallel.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

// Calls f(chunk_begin, chunk_end) for chunks of [begin, end), each on a thread. As in ATen/ParallelOpenMP.h: the chunks
// are the same, chunk 0 runs on the calling thread, and one of the exceptions is rethrown. In a parallel region of
// OpenMP, MKL uses one thread. MKL does not recognize these chunks as such a region, so it is told to use one thread:
// with more, it sums in another order.
template <typename F>
void at::internal::invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  const int64_t max_chunks = grain_size > 0 ? divup(end - begin, grain_size) : end - begin;
  const int64_t chunk_size = divup(end - begin, std::min<int64_t>(get_num_threads(), max_chunks));
  const int64_t n_chunks = divup(end - begin, chunk_size);
  std::vector<std::exception_ptr> errors(n_chunks);
  const auto run = [&](int64_t chunk) {
    const int outer_threads = MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0;
    try {
      const ThreadIdGuard guard(static_cast<int>(chunk));
      f(begin + chunk * chunk_size, std::min(end, begin + (chunk + 1) * chunk_size));
    } catch (...) {
      errors[chunk] = std::current_exception();
    }
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(outer_threads);
  };
  std::vector<std::thread> threads;
  for (int64_t chunk = 1; chunk < n_chunks; ++chunk) threads.emplace_back(run, chunk);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}
