// Selection of the instruction set at run time, so that a wheel built on one machine runs on another.
//
// Nothing is compiled with -march=native. The inner loops of a kernel are in a file of their own, the kernel file.
// common/foreach_isa.h compiles it once per instruction set, each time in another namespace:
//
//     // csrc/ranking/cpu.cpp
//     #include "common/simd.h"
//     #define GRF_KERNEL "ranking/cpu_kernel.inc"  // defines vector_bytes() and others; includes no header itself
//     #include "common/foreach_isa.h"              // at file scope
//     ...
//     GRF_DISPATCH(vector_bytes)();                // baseline::, avx2:: or avx512::vector_bytes
//
// docs/building.md ("A kernel for several instruction sets") has the rules for kernel files.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
#define GRF_X86_ISAS 1
#else
#define GRF_X86_ISAS 0  // ARM and others: only the baseline copy, compiled for the architecture's default instructions
#endif
#if GRF_X86_ISAS
#include <immintrin.h>
#endif

namespace grf {

enum class SimdLevel : int { baseline = 0, avx2 = 1, avx512 = 2 };

inline const char* simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::avx512:
      return "avx512";
    case SimdLevel::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

// Returns the widest instruction set that the processor and the operating system support.
inline SimdLevel detect_simd_level() {
#if GRF_X86_ISAS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return SimdLevel::avx512;
  if (avx2) return SimdLevel::avx2;
#endif
  return SimdLevel::baseline;
}

// Returns the instruction set for kernels: the widest supported one, or the one that the environment variable
// GRU4REC_FAST_SIMD=baseline|avx2|avx512 selects. Throws std::runtime_error if the variable has another value or the
// processor lacks that instruction set.
inline SimdLevel choose_simd_level() {
  const SimdLevel detected = detect_simd_level();
  const char* requested = std::getenv("GRU4REC_FAST_SIMD");
  if (requested == nullptr || *requested == '\0') return detected;
  for (const SimdLevel level : {SimdLevel::baseline, SimdLevel::avx2, SimdLevel::avx512}) {
    if (std::string(requested) != simd_name(level)) continue;
    if (level <= detected) return level;
    throw std::runtime_error(std::string("GRU4REC_FAST_SIMD=") + requested + ": this processor supports at most " +
                             simd_name(detected));
  }
  throw std::runtime_error(std::string("GRU4REC_FAST_SIMD=") + requested + ": choose one of baseline, avx2, avx512");
}

// Returns the result of choose_simd_level, computed once per process: changing the variable later has no effect.
inline SimdLevel simd_level() {
  static const SimdLevel level = choose_simd_level();
  return level;
}

}  // namespace grf

// Expands to a pointer to the copy of a kernel function for simd_level(). The argument is the name of a function, or of
// a function template with its template arguments.
#if GRF_X86_ISAS
#define GRF_DISPATCH(...)                                                        \
  (::grf::simd_level() == ::grf::SimdLevel::avx512 ? &::grf::avx512::__VA_ARGS__ \
   : ::grf::simd_level() == ::grf::SimdLevel::avx2 ? &::grf::avx2::__VA_ARGS__   \
                                                   : &::grf::baseline::__VA_ARGS__)
#else
#define GRF_DISPATCH(...) (&::grf::baseline::__VA_ARGS__)
#endif
