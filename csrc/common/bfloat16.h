// Conversions between float and bfloat16, on the CPU and in CUDA kernels. A bfloat16 number is passed as its bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/philox.h"  // GRF_HOST_DEVICE

namespace grf {

GRF_HOST_DEVICE float widen_bfloat16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof(value));
  return value;
}

// Rounds to nearest, ties to even. Every NaN becomes 0x7FC0, as in torch.
GRF_HOST_DEVICE uint16_t narrow_bfloat16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof(word));
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

// Converts elements between T, their type in memory, and Sum, the type for arithmetic. If T is uint16_t, which holds
// the bits of a bfloat16 number, Sum is float. Otherwise Sum is T.
template <typename T>
struct Stored {
  using Sum = T;
  static GRF_HOST_DEVICE T widen(T value) { return value; }
  static GRF_HOST_DEVICE T narrow(T value) { return value; }
};
template <>
struct Stored<uint16_t> {
  using Sum = float;
  static GRF_HOST_DEVICE float widen(uint16_t bits) { return widen_bfloat16(bits); }
  static GRF_HOST_DEVICE uint16_t narrow(float value) { return narrow_bfloat16(value); }
};

}  // namespace grf
