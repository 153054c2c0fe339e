// Defines the Python module `gru4rec_fast._C`: facts about this build, the counter of allocations, and
// the classes of the fused training step.
// Importing the module also registers the operators of schema.cpp. The namespace grf is short for gru4rec_fast.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "common/simd.h"
#include "memory_profiler/bindings.h"
#include "training_step/bindings.h"

namespace {

std::string compiler_name() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

// Returns the number of threads that at::parallel_for uses in this library. If the library was compiled without OpenMP,
// the number is 1 and does not depend on torch.set_num_threads.
int count_parallel_threads() {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const std::lock_guard<std::mutex> guard(mutex);
    threads.insert(std::this_thread::get_id());
  });
  return static_cast<int>(threads.size());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() =
      "Native kernels of gru4rec_fast. gru4rec_fast._backend loads them after checking that they were built for this "
      "torch.";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("compiler") = compiler_name();
#ifdef _OPENMP
  m.attr("parallel") = "openmp";
#else
  m.attr("parallel") = "serial";
#endif
#ifdef GRF_WITH_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  m.def(
      "simd_level", [] { return grf::simd_name(grf::simd_level()); },
      "Return the instruction set in use: baseline, avx2 or avx512. Raises RuntimeError if GRU4REC_FAST_SIMD is "
      "unknown.");
  m.def(
      "simd_level_detected", [] { return grf::simd_name(grf::detect_simd_level()); },
      "Return the widest instruction set of this processor.");
  m.def("parallel_width", &count_parallel_threads, "Return the number of threads that a parallel kernel runs on.");
  grf::bind_memory(m);
  grf::bind_training(m);
}
