// Which instruction set a kernel runs with: chosen at run time, so that a wheel built on one machine runs on another.
//
// Nothing is compiled with -march=native. A kernel's inner loops live in a file of their own, which
// common/foreach_isa.h compiles once per instruction set, each copy in a namespace of its own:
//
//     // csrc/ranking/cpu.cpp
//     #include "common/simd.h"
//     #define GRF_KERNEL "ranking/cpu_kernel.inc"   // defines count_above(...); includes no header itself
//     #include "common/foreach_isa.h"               // at file scope
//     ...
//     GRF_DISPATCH(count_above)(scores, n, target); // baseline::, avx2:: or avx512::count_above
//
// docs/building.md ("A kernel for several instruction sets") states the rules a kernel file keeps.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
#define GRF_X86_ISAS 1
#else
#define GRF_X86_ISAS 0  // ARM and others: the baseline copy only, for which the compiler uses what the architecture has
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

// The widest level that this processor and its operating system offer.
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

// The level kernels run at: the detected one, or a lower one asked for by GRU4REC_FAST_SIMD=baseline|avx2|avx512.
// Throws std::runtime_error where the variable names no level or one that this processor lacks.
inline SimdLevel choose_simd_level() {
  const SimdLevel detected = detect_simd_level();
  const char* wanted = std::getenv("GRU4REC_FAST_SIMD");
  if (wanted == nullptr || *wanted == '\0') return detected;
  for (const SimdLevel level : {SimdLevel::baseline, SimdLevel::avx2, SimdLevel::avx512}) {
    if (std::string(wanted) != simd_name(level)) continue;
    if (level <= detected) return level;
    throw std::runtime_error(std::string("GRU4REC_FAST_SIMD=") + wanted + ": this processor offers " +
                             simd_name(detected) + " at most");
  }
  throw std::runtime_error(std::string("GRU4REC_FAST_SIMD=") + wanted + ": choose one of baseline, avx2, avx512");
}

// Read once per process: changing the variable later has no effect.
inline SimdLevel simd_level() {
  static const SimdLevel level = choose_simd_level();
  return level;
}

}  // namespace grf

// The copy of `function` (a function, or a template with its arguments) for the running level, as a function pointer.
#if GRF_X86_ISAS
#define GRF_DISPATCH(...)                                                        \
  (::grf::simd_level() == ::grf::SimdLevel::avx512 ? &::grf::avx512::__VA_ARGS__ \
   : ::grf::simd_level() == ::grf::SimdLevel::avx2 ? &::grf::avx2::__VA_ARGS__   \
                                                   : &::grf::baseline::__VA_ARGS__)
#else
#define GRF_DISPATCH(...) (&::grf::baseline::__VA_ARGS__)
#endif
