// Element types as the Python side numbers them, and the two 16-bit floats' arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#include "grid_index.h"

namespace equikern {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3, kBits8 = 4, kBits16 = 5, kBits32 = 6, kBits64 = 7 };

inline int element_size(Dtype t) {
  switch (t) {
    case Dtype::kFloat64:
    case Dtype::kBits64: return 8;
    case Dtype::kFloat32:
    case Dtype::kBits32: return 4;
    case Dtype::kBits8: return 1;
    default: return 2;
  }
}

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

EQK_HD float bits_to_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
EQK_HD uint32_t float_to_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

EQK_HD float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

// Round to nearest even; a NaN stays a (quiet) NaN.
EQK_HD BFloat16 to_bfloat16(float f) {
  uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

EQK_HD float to_float(Half x) {
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ff) << 13));
  if (magnitude >= 0x400) return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
  float f = float(magnitude) * 5.9604644775390625e-8f;  // subnormal: a multiple of 2^-24
  return bits_to_float(sign | float_to_bits(f));
}

EQK_HD Half to_half(float f) {
  uint32_t u = float_to_bits(f), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff))};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                   // below 2^-14: adding 0.5 rounds to multiples of 2^-24
    float shifted = bits_to_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_to_bits(shifted) - 0x3f000000u))};
  }
  uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
  return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace equikern
