// Element types as the Python side numbers them, and the two 16-bit floats' arithmetic.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "grid_index.h"

namespace equikern {

// Integers are moved as bits; where they are compared, those of 8 bits are told apart by their sign.
enum class Dtype : int { kFloat32 = 0, kFloat64, kFloat16, kBFloat16, kBits8, kBits16, kBits32, kBits64, kUint8 };

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

constexpr bool is_float(Dtype t) { return t <= Dtype::kBFloat16; }

// f(a value of the dtype's type): of floats, of integers as they are compared, of unsigned ones that carry any dtype's bits.
template <class F>
auto with_float(Dtype t, const F& f) {
  switch (t) {
    case Dtype::kFloat32: return f(float());
    case Dtype::kFloat64: return f(double());
    case Dtype::kFloat16: return f(Half());
    case Dtype::kBFloat16: return f(BFloat16());
    default: throw std::invalid_argument("dtype: expected a floating-point type");
  }
}
template <class F>
auto with_integer(Dtype t, const F& f) {
  switch (t) {
    case Dtype::kUint8: return f(uint8_t());
    case Dtype::kBits8: return f(int8_t());
    case Dtype::kBits16: return f(int16_t());
    case Dtype::kBits32: return f(int32_t());
    case Dtype::kBits64: return f(int64_t());
    default: throw std::invalid_argument("dtype: expected an integer type");
  }
}
template <class F>
auto with_bits(int element_size, const F& f) {
  switch (element_size) {
    case 1: return f(uint8_t());
    case 2: return f(uint16_t());
    case 4: return f(uint32_t());
    default: return f(uint64_t());
  }
}

template <class F>
auto with_number(Dtype t, const F& f) { return is_float(t) ? with_float(t, f) : with_integer(t, f); }

inline int element_size(Dtype t) {
  return with_number(t, [](auto value) { return int(sizeof value); });
}
template <class F>
auto with_bits(Dtype t, const F& f) { return with_bits(element_size(t), f); }

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
