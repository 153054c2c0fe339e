// bfloat16, which travels as its bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/philox.h"

namespace grf {

GRF_HOST_DEVICE float widen_bfloat16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &word, sizeof(value));
  return value;
}

// To the nearest, ties to even; every NaN becomes the one that torch writes.
GRF_HOST_DEVICE uint16_t narrow_bfloat16(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof(word));
  if (value != value) return 0x7FC0;
  return static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

// A number as memory holds it, T, and what it is computed in: itself, or float where T is bfloat16's bits.
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
