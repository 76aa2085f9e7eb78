// Half-precision and bfloat16 scalars, for code outside the vector kernels.
#pragma once

#include <stdint.h>
#include <string.h>

namespace ridgeline {

static inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = (uint32_t)(h & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return float_of_bits(sign | 0x7f800000u | magnitude);  // inf, NaN
  const float x = float_of_bits(magnitude) * 0x1p112f;  // moves the exponent's bias; exact for subnormals too
  return sign ? -x : x;
}

static inline float half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, sizeof h);
  return half_to_float(h);
}

static inline float bf16_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, sizeof h);
  return float_of_bits((uint32_t)h << 16);
}

static inline float float_at(const uint8_t* p) {
  float x;
  memcpy(&x, p, sizeof x);
  return x;
}

}  // namespace ridgeline
